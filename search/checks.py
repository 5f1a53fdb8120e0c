"""Range checks that name the field, what was expected and what came."""

from typing import Annotated

from pydantic import Strict

from einlayers.errors import FieldError

Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
"""Numbers that are numbers in JSON too: neither "1" nor true."""

Flag = Annotated[bool, Strict()]
"""True or false, and neither "yes" nor 1."""


def check_whole(field: str, value: object, low: int, high: int, *, multiple_of: int = 1) -> None:
    """Refuse anything but a whole number from ``low`` to ``high``.

    Raises:
        FieldError: the value is of another type, out of range, or no multiple of ``multiple_of``.
    """
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high and value % multiple_of == 0
    if not fits:
        multiple = f" that is a multiple of {multiple_of}" if multiple_of > 1 else ""
        raise FieldError(field, expected=f"a whole number from {low} to {high}{multiple}", got=value)


def check_number(field: str, value: object, low: float, high: float) -> None:
    """Refuse anything but a finite number from ``low`` to ``high``.

    Raises:
        FieldError: the value is of another type, not finite, or out of range.
    """
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not fits:
        raise FieldError(field, expected=f"a number from {low:g} to {high:g}", got=value)
