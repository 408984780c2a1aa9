"""Records into numbers with their errors, and into tables."""
