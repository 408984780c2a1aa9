"""ADM, the network of guided-diffusion: flags, conversion of checkpoints, and their cache."""
