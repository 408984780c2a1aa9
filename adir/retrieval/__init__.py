"""The neighbours of y: how it is shown to an encoder, and which images are left out as copies."""
