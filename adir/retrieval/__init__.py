"""The neighbours of y: how it is shown to an encoder, and which pictures are left out as copies."""
