"""Compose, identify and check the cells of a grid, each of which is a combination of settings."""
