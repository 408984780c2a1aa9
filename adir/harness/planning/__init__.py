"""What a grid will cost, before it is run."""
