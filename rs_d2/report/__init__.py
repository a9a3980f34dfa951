"""What is written about an evaluation: the page, its figures, the table of classes."""
