"""The one error of data."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used; the message names the file or column and what to do about it."""
