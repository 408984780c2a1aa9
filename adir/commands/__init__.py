"""Commands of `adir`: one file per command, whose `main` runs it. cli.py defines the arguments."""
