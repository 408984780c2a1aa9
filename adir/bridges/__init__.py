"""Bridges to other libraries: their operators become tasks, and they can call our methods."""
