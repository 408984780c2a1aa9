"""Other libraries' interfaces on both sides: their operators as our tasks, our methods as their
models.
"""
