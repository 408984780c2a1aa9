"""Trackers, which copy records to CSV, TensorBoard or Weights & Biases."""
