"""Samples, losses, the training loop, the search over it, and prediction."""
