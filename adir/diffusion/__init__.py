"""Mathematics of diffusion models and of ADIR's guidance, as pure functions on tensors."""
