"""Plain values in files: numbers that keep their digits, and names of types for people.

JSON's `0.1` and a Parquet float32 of 0.1 both become `ExactFloat("0.1")`: a float that remembers
how it was written, so that a truth is never `0.10000000149011612`.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

MAX_DIGITS = 400
"""More digits than any float needs; writing out `1e999999999` would fill the memory."""

_EXACT_DIGITS = 15  # every float represents this many decimal digits exactly


class ExactFloat(float):
    """A float with the text that it was read from."""

    text: str

    def __new__(cls, text: str) -> ExactFloat:
        number = super().__new__(cls, text)
        number.text = text
        return number


def number_text(value: int | float | Decimal) -> str:
    """The number written without an exponent: `0.0000001`.

    Raises `ValueError` for a value that is not a finite number, has more than 400 digits, or may
    have been rounded: a whole number stored as a float with more digits than a float can hold.
    """
    if isinstance(value, int):
        return str(value)
    exact = Decimal(value.text if isinstance(value, ExactFloat) else str(value))
    if not exact.is_finite():
        raise ValueError(f"{value} is not a number; write one, or null if there is none")
    if abs(exact.adjusted()) > MAX_DIGITS or len(exact.as_tuple().digits) > MAX_DIGITS:
        raise ValueError(f"the number has more than {MAX_DIGITS} digits; write it as a text")
    if type(value) is float and _may_be_rounded(exact):
        raise ValueError(
            f"the float {value!r} has more digits than a float can hold and may have been rounded; "
            "store it as a whole number or as a text"
        )
    return format(exact, "f")


def _may_be_rounded(exact: Decimal) -> bool:
    return abs(exact) >= 2**53 and len(exact.normalize().as_tuple().digits) > _EXACT_DIGITS


def is_missing_number(value: Any) -> bool:
    """Whether a value is NaN or infinite, which some writers use for a missing value."""
    return type(value) is float and not math.isfinite(value)


def kind_of(value: Any) -> str:
    """The name of the value's type for people: `text`, `list`, `number`, `null`."""
    names = {
        dict: "mapping",
        list: "list",
        bool: "true/false",
        str: "text",
        bytes: "binary value",
        type(None): "null",
    }
    other = "number" if isinstance(value, int | float | Decimal) else type(value).__name__
    return names.get(type(value), other)
