"""Tasks: operators, noise, and the reading and writing of measurements."""
