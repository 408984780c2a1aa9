"""Cells: composed from a configuration, built, identified, and checked against the machine."""
