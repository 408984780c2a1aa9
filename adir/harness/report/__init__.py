"""A results folder for people to look at: one HTML page, figures, the comparison image."""
