"""From IDRiD as downloaded to batches of uint8 images on the devices. README.md in this folder is the guide."""
