"""Leaderboards: means, standard errors and tests from records, and tables that show them."""
