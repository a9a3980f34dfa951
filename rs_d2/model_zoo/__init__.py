"""The shipped models and what is known of them."""

from rs_d2.model_zoo.api import get, get_checkpoint_path, get_config, list_models
from rs_d2.model_zoo.rows import MEASURED, PUBLISHED, Measurement, Metrics, PublishedRow

__all__ = [
    "MEASURED",
    "PUBLISHED",
    "Measurement",
    "Metrics",
    "PublishedRow",
    "get",
    "get_checkpoint_path",
    "get_config",
    "list_models",
]
