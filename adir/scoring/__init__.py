"""Metrics of image quality, each with its direction, range and weights."""
