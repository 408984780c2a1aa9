"""Bridges to other libraries: use their operators as tasks, and our methods as their models."""
