"""Metrics of generated images, each reported next to its value on held-out photographs. See README.md."""
