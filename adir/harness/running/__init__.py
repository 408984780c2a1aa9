"""Running of a grid: workers restore the images of cells and write the records."""
