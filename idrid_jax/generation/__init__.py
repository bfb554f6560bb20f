"""A trained generator -> images by grade, interpolations, and releases in IDRiD's layout."""
