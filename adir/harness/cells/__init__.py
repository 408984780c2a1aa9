"""Cells of a grid: composed from a configuration, identified, and checked against the machine."""
