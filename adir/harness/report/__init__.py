"""Views of a results folder for people: an HTML page, figures, and a comparison image."""
