"""Test sets and corpora: collections of images by id."""
