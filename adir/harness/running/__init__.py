"""Run a grid of cells: workers restore the test images of each cell and write the records."""
