"""Small JSON files that describe models and codes, and folders that one process writes at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What a file system without locks answers.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in ``path``; ValueError naming the file, and ``remedy``, if it holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no UTF-8, or no JSON
        raise ValueError(f"{path} is not valid JSON ({error}); {remedy}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a JSON {type(values).__name__}; accepted: an object; {remedy}")
    return values


@contextmanager
def only_writer(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Inside, no other process is in such a block for ``folder``, which is made if needed.

    Raises ValueError at once where another one is, or with ``wait`` waits for its end. The lock is one of
    the system's on the folder itself: it leaves no file, and ends with the process, however that ends. File
    systems without locks have none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise ValueError(
                f"{folder} is being written by another process; wait for its end, or give another folder "
                f"(--name or --out)"
            ) from error
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that appears under its name only when it is complete; its folder is made if needed.

    Raises OSError naming the file where it cannot be written, for example on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written ({error.strerror})") from error
