"""Feature extractors: pretrained networks that map images to vectors, and the cache of their features on disk."""
