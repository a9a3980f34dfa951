"""What the losses aim at: matched objects, continuous labels, instance weights."""
