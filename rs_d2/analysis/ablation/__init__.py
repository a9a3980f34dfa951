"""Variants of a detector trained under equal conditions and compared in one table.

Example::

    from rs_d2.analysis import ablation

    outcome = ablation.ablate(ablation.TABLES["S8"], "output/S8", seeds=3)
    print(outcome.markdown)

A variant is a few config lines that are laid over a base config, the same for all: a named table of
the publication (``TABLES``), yaml files, or KEY VALUE pairs. All variants of a seed begin with the
same weights, as far as they have them in common, and see the same images in the same order.
"""

from rs_d2.analysis.ablation.compare import Outcome, ablate
from rs_d2.analysis.ablation.tables import TABLES, Row, Table
from rs_d2.analysis.ablation.variants import Variant, custom_table, variant_of

__all__ = ["TABLES", "Outcome", "Row", "Table", "Variant", "ablate", "custom_table", "variant_of"]
