"""Operators, and what is done to x."""
