"""The one error that speaks to a user."""


class InputError(ValueError):
    """Something the user asked for or brought along cannot be used, and the message says what to
    change.

    `adir` prints it as one line and exits with status 2. Any other exception is a defect of ours
    and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """The message of an exception, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
