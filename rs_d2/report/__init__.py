"""What is written about an evaluation: the page, its figures and tables."""
