"""python -m adir: the same as the `adir` command."""

import sys

from adir.cli import main

sys.exit(main())
