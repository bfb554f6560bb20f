"""What the images are worth, always beside what real photographs give by the same measure."""
