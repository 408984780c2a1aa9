"""Pretrained denoisers behind one interface."""
