"""Cells, records and tables."""
