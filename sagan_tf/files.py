"""Files, written whole or not at all: the one place that knows how.

A file appears under its name when all of it is on the disk. Only regular files are replaced: a link is followed,
a device or a pipe is written to.
"""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from typing import Any

from absl import logging

from sagan_tf.errors import UserError

__all__ = ["append_line", "read_json", "sync", "told", "whole", "write", "write_json", "writing"]


def write(path: str, content: str | bytes, flush: bool = True) -> None:
    """Writes a file whole or not at all, making its directory if need be.

    Args:
      path: of the file.
      content: text, written as UTF-8, or bytes.
      flush: wait for the disk, so that a power cut does not lose it; one of thousands need not.

    Raises:
      OSError: if it cannot be written; what stood there before is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    with whole(path, flush) as temporary, open(temporary, "wb") as file:
        file.write(data)


@contextlib.contextmanager
def whole(path: str, flush: bool = True) -> Iterator[str]:
    """Gives a temporary name to write to; the file takes its real name when the block ends well, else it goes.

    Args:
      path: the real name; its directory is made.
      flush: wait for the disk.

    Raises:
      OSError: if it cannot be written.
    """
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        yield path
        return
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        yield temporary
        if flush:
            sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def write_json(path: str, value: Any, indent: int | None = None) -> None:
    """Writes a value as a JSON file, whole or not at all.

    Raises:
      OSError: if it cannot be written.
    """
    write(path, json.dumps(value, indent=indent) + "\n")


def read_json(path: str) -> Any:
    """Returns the value in a JSON file.

    Raises:
      OSError, ValueError: if it cannot be read.
    """
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def append_line(path: str, line: str) -> None:
    """Adds a line to a text file, whole or not at all.

    Raises:
      OSError: if it cannot be written; the file is as it was before.
    """
    data = f"{line}\n".encode()
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def sync(path: str) -> None:
    """Flushes a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(flag: str, path: str) -> Iterator[None]:
    """Turns what keeps the file or directory that a flag names from being written into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--{flag}={path} cannot be written ({error.strerror}): choose another.") from error


@contextlib.contextmanager
def told(sentence: str, *errors: type[Exception]) -> Iterator[None]:
    """Turns what keeps something from being written into a warning, where the work goes on without it.

    Args:
      sentence: without its full stop, such as "Samples of step 5 cannot be written".
      *errors: kinds of exception beside `OSError`, such as TensorFlow's.
    """
    wanted: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except wanted as error:
        logging.warning("%s (%s).", sentence, str(error).splitlines()[0])
