"""Workers turn cells into records."""
