"""Leaderboards: means, errors and tests computed from records, and tables that show them."""
