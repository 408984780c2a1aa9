"""Estimates of a grid's cost before it runs."""
