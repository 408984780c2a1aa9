"""Loops over adir.diffusion that turn y into a restored x."""
