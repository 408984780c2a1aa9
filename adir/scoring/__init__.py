"""Image quality: metrics with their direction, range and weights."""
