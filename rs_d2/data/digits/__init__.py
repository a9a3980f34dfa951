"""A long-tailed set of handwritten digits, made on the spot."""

from rs_d2.data.digits.digits import digits_categories, find_digits, make_digits

__all__ = ["digits_categories", "find_digits", "make_digits"]
