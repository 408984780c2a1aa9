"""ADIR: adaptive diffusion image reconstruction (arXiv 2212.03221), as a benchmark harness.

Nothing heavy is imported here, so that `import adir` and `adir --help` answer at once.
"""

__version__ = "0.1.0"
