"""The content-addressed cache of images."""
