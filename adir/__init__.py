"""ADIR: adaptive diffusion image reconstruction (arXiv 2212.03221), as a benchmark harness.

The Python interface, documented in docs/python.md, is what `__all__` names; everything else may
change in any version. Nothing heavy is imported before it is used, so that `import adir` and `adir
--help` answer at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adir.api import adapt, adapted, read_image, records, restore, setup, write_image

__version__ = "0.1.0"
__all__ = ["adapt", "adapted", "read_image", "records", "restore", "setup", "write_image"]


def __getattr__(name: str) -> Any:
    """Import a name of the interface when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(
            f"module 'adir' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(importlib.import_module("adir.api"), name)
