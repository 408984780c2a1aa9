"""Sampling loops built on adir.diffusion that restore x from y."""
