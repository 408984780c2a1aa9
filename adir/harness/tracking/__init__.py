"""Trackers: classes that log records to CSV, TensorBoard or Weights & Biases."""
