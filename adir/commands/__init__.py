"""Commands of `adir`.

There is one file per command, and its function `main` runs the command. cli.py defines the
arguments.
"""
