"""The COCO and LVIS format, once: reading, checks, cleaning, records, run lengths, results."""
