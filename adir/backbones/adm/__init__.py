"""ADM, guided-diffusion's network: its flags, the conversion of a checkpoint, the converted file
kept.
"""
