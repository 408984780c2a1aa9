"""Records sent elsewhere: CSV, TensorBoard, Weights & Biases."""
