"""Benchmark harness for ADIR, adaptive diffusion image reconstruction (arXiv 2212.03221).

The names in `__all__` are the Python interface, which docs/python.md documents. Everything else
may change in any version. torch and other large packages are imported at first use, so `import
adir` and `adir --help` take no noticeable time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adir.api import adapt, adapted, read_image, records, restore, setup, write_image

__version__ = "0.1.0"
__all__ = ["adapt", "adapted", "read_image", "records", "restore", "setup", "write_image"]


def __getattr__(name: str) -> Any:
    """Import a name in `__all__` from adir.api at its first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(
            f"module 'adir' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(importlib.import_module("adir.api"), name)
