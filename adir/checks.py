"""Checks of settings, which raise ValueError and name the setting and its value.

The keyword arguments of these functions are the names of the settings.
"""

import math
from collections.abc import Collection
from typing import Any


def require_whole(least: int, **values: Any) -> None:
    """Raise ValueError for the first setting that is not an integer of at least `least`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}: a whole number of at least {least} is needed")


def require_positive(**values: float) -> None:
    """Raise ValueError for the first setting that is not a finite number above 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r}: a positive number is needed")


def require_not_negative(**values: float) -> None:
    """Raise ValueError for the first setting that is not a finite number of at least 0."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r}: a number that is not negative is needed")


def require_unit_interval(**values: float) -> None:
    """Raise ValueError for the first setting outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value!r}: a number from 0 to 1 is needed")


def require_choice(what: str, value: str, choices: Collection[str]) -> None:
    """Raise ValueError unless the value of the setting `what` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"unknown {what} {value!r}; choose one of {', '.join(choices)}")
