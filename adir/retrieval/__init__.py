"""Retrieval of the neighbours of y: query, encoders, index, and the exclusion of copies of x."""
