"""Bridges to other libraries: their operators as our tasks, and our methods as their models."""
