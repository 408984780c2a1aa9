"""The prior, encoder and pictures that work with no download."""
