"""Nearest-neighbour search among the embeddings of a corpus, in memory or on disk."""
