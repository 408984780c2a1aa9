"""Exact nearest neighbours among the vectors of a corpus, in memory or on disk."""
