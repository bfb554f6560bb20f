"""Images from a trained generator: by grade, as a release in IDRiD's layout, and interpolated."""
