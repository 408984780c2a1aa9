"""Backbones: pretrained denoisers with a common interface."""
