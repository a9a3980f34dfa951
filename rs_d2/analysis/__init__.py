"""Studies over trained models and data sets."""
