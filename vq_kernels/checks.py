"""The grammar of errors: "NAME is VALUE; accepted: ...", for this package and for ``models`` alike.

One rule decides the class. TypeError: the value is of a type, or a tensor of a dtype or layout, that is
never accepted. ValueError: the type is right and this value, shape or device is not.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence


def check_integer(lowest: int, /, **arguments: object) -> None:
    """Raise TypeError or ValueError for the first argument that is no integer of at least ``lowest``.

    NumPy's integers count as integers; True and False do not.
    """
    accepted = f"an integer of at least {lowest}"
    for name, value in arguments.items():
        if type(value) is int and value >= lowest:
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} is {value!r}; accepted: {accepted}")
        if int(value) < lowest:
            raise ValueError(f"{name} is {value!r}; accepted: {accepted}")


def check_share(**arguments: object) -> None:
    """Raise TypeError or ValueError for the first argument that is no number from 0 to below 1."""
    for name, value in arguments.items():
        check_number(0, 1, **{name: value})
        if value == 1:
            raise ValueError(f"{name} is 1; accepted: a number from 0 to below 1")


def check_number(low: float = 0.0, high: float = math.inf, /, **arguments: object) -> None:
    """Raise TypeError or ValueError for the first argument that is no finite number from low to high.

    NumPy's numbers count as numbers; True and False do not.
    """
    for name, value in arguments.items():
        if type(value) is float and low <= value <= high and value < math.inf:
            continue  # the usual case, before anything is asked of abstract classes
        accepted = (
            f"a finite number of at least {low}" if math.isinf(high) else f"a number from {low} to {high}"
        )
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} is {value!r}; accepted: {accepted}")
        if not low <= float(value) <= high or math.isinf(float(value)):
            raise ValueError(f"{name} is {value!r}; accepted: {accepted}")


def check_positive(**arguments: object) -> None:
    """Raise TypeError or ValueError for the first argument that is no positive normal float32."""
    for name, value in arguments.items():
        if type(value) is float and 2.0**-126 <= value < 2.0**128:
            continue  # the usual case, before anything is asked of abstract classes
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} is {value!r}; accepted: a finite number above 0")
        if not 2.0**-126 <= float(value) < 2.0**128:
            raise ValueError(f"{name} is {value!r}; accepted: a finite number above 0")


def check_flag(**arguments: object) -> None:
    """Raise TypeError for the first argument that is neither True nor False."""
    for name, value in arguments.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}; accepted: True or False")


def check_choice(accepted: Sequence[object], /, **arguments: object) -> None:
    """Raise ValueError for the first argument that is not among ``accepted``."""
    for name, value in arguments.items():
        for choice in accepted:
            # By type too: True equals 1, and 1.0 as well.
            if type(value) is type(choice) and value == choice:
                break
        else:
            raise ValueError(f"{name} is {value!r}; accepted: {', '.join(map(repr, accepted))}")
