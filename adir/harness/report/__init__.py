"""Reports on a results folder: an HTML page, figures for papers, and a comparison image."""
