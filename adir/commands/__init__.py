"""What `adir COMMAND` does: `main` of the file of that name. cli.py says what can be typed."""
