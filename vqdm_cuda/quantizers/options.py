"""Checks of the constructors' options, in the name of the class: TypeError or ValueError, one sentence."""

import math
from typing import Any

__all__ = ["check_bool", "check_count", "check_decay", "check_not_negative", "check_positive"]


def check_count(name: str, **options: Any) -> None:
    """Whole numbers of at least 1."""
    for option, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name}: expected {option} to be an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name}: expected {option} of at least 1, got {value}")


def check_bool(name: str, **options: Any) -> None:
    for option, value in options.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected {option} to be true or false, got {type(value).__name__}")


def check_not_negative(name: str, **options: Any) -> None:
    for option, value in options.items():
        if not 0 <= _number(name, option, value) < math.inf:
            raise ValueError(f"{name}: expected {option} to be finite and not negative, got {value}")


def check_positive(name: str, **options: Any) -> None:
    for option, value in options.items():
        if not 0 < _number(name, option, value) < math.inf:
            raise ValueError(f"{name}: expected {option} to be finite and positive, got {value}")


def check_decay(name: str, decay: Any) -> None:
    if not 0 <= _number(name, "decay", decay) < 1:
        raise ValueError(f"{name}: expected decay from 0 to less than 1, got {decay}")


def _number(name: str, option: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {option} to be a number, got {type(value).__name__}")
    return value
