"""Encoders map images to vectors whose distances measure how similar the images are."""
