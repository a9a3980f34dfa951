"""From what a head predicts to its losses: labels, weights, rankings, task balance."""
