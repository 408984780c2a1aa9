"""The mathematics of the paper: pure functions on tensors."""
