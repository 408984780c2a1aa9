"""Exception for input that cannot be used, and functions for messages."""


class InputError(ValueError):
    """Exception for a request or an input file that cannot be used.

    The message says what to change. `adir` prints the message on one line and exits with status 2.
    Any other exception is a bug in adir and keeps its traceback.
    """


def one_line(error: BaseException) -> str:
    """Return the whole message of an exception on one line, or its class name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def count_of(n: int, noun: str) -> str:
    """Return a number with a noun, such as `1 image` or `3 images`."""
    return f"{n} {noun}{'' if n == 1 else 's'}"
