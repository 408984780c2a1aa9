"""Conversion of checkpoints of ADM, the network of guided-diffusion, to diffusers folders."""
