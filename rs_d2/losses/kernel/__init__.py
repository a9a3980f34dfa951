"""The exact sums that all ranking losses share."""
