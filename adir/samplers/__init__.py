"""Samplers: methods that restore an image x from its measurement y."""
