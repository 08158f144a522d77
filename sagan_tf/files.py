"""Files, here or wherever TensorFlow writes: the one place that knows how.

A path with a scheme (`gs://bucket/run`) is for TensorFlow (`tf.io.gfile`), all others are for the system. A file appears under
its name when all of it is there: here by a temporary name, a flush and a rename, on an object store by one put. Only regular
files are replaced: a link is followed, a device or a pipe is written to. What fails raises `OSError`, wherever it is.
"""

import contextlib
import errno
import fcntl
import importlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any

from absl import logging

from sagan_tf.errors import UserError

__all__ = [
    "append_line",
    "exists",
    "held",
    "is_dir",
    "is_remote",
    "join",
    "listing",
    "make_dirs",
    "move_dir",
    "name_of",
    "parent",
    "read",
    "read_json",
    "reading",
    "remove",
    "resolve",
    "suffix_of",
    "sync",
    "told",
    "whole",
    "write",
    "write_json",
    "writing",
]

# What a path that is not here begins with.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?=/|$)")
_OF_TENSORFLOW_IO = ("az", "hdfs", "s3", "viewfs")
_CODES = {"NotFoundError": errno.ENOENT, "PermissionDeniedError": errno.EACCES, "AlreadyExistsError": errno.EEXIST}
_LOCK = "training.lock"

join = os.path.join


def resolve(path: str, flag: str, checkpoints: bool = False) -> str:
    """Returns a path as its flag means it: `~` is the home directory, schemes have small letters, `file:///` is here.

    Args:
      path: as it was given; empty: stays so.
      flag: that gave it.
      checkpoints: TensorFlow is to keep variables there.

    Raises:
      UserError: if this TensorFlow does not write there, or the path is not whole.
    """
    shown = f"--{flag}={path}"
    if checkpoints and set(path) & set("[\\"):
        raise UserError(f"{shown}: TensorFlow finds no checkpoint below a name with [ or \\ in it: choose another.")
    match = _SCHEME.match(path)
    if not match:
        if (expanded := os.path.expanduser(path)).startswith("~"):
            raise UserError(f"{shown}: there is no such user here. Write ./{path} for a file or directory of that name.")
        return expanded
    scheme, rest = match[1].lower(), path[match.end() :].rstrip("/")
    if not re.match("///[^/]" if scheme == "file" else "//[^/]", rest):
        raise UserError(f"{shown} is not whole: write {scheme}://BUCKET/NAME, or ./{path} for a local directory of that name.")
    if scheme == "file":
        return rest[2:]
    if scheme not in _schemes():
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorflow_io")  # Adds to the schemes.
    if scheme not in (known := _schemes()):
        needed = f"{scheme}:// needs the package tensorflow-io" if scheme in _OF_TENSORFLOW_IO else "choose one of them"
        others = ", ".join(f"{name}://" for name in known)
        raise UserError(f"{shown}: this TensorFlow writes to {others} and local directories, not to {scheme}://: {needed}.")
    return f"{scheme}:{rest}"


def _schemes() -> list[str]:
    import tensorflow as tf  # Layers and networks run without it.

    return sorted(set(tf.io.gfile.get_registered_schemes()) - {"", "file"})


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path has a scheme."""
    return bool(_SCHEME.match(os.fspath(path)))


@contextlib.contextmanager
def _gfile(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Gives `tf.io.gfile`, and turns its errors into `OSError`."""
    import tensorflow as tf

    try:
        yield tf.io.gfile
    except tf.errors.OpError as error:
        code = _CODES.get(type(error).__name__, errno.EIO)
        raise OSError(code, (str(error) or os.strerror(code)).splitlines()[0], os.fspath(path)) from error


def name_of(path: str) -> str:
    """Returns the last part of a path; that of the working directory is its own name."""
    return os.path.basename(path.rstrip("/") if is_remote(path) else os.path.abspath(path))


def suffix_of(path: str) -> str:
    """Returns how the last part of a path ends, such as ".png", in small letters; empty: without a suffix."""
    return os.path.splitext(path)[1].lower()


def parent(path: str) -> str:
    """Returns the directory that a path is in; that of a bucket is itself."""
    if is_remote(path):
        return path if path.count("/") < 3 else path.rpartition("/")[0]
    return os.path.dirname(os.path.abspath(path))


def exists(path: str) -> bool:
    """Returns whether there is a file or a directory.

    Raises:
      OSError: if the file system does not answer.
    """
    if not is_remote(path):
        return os.path.exists(path)
    with _gfile(path) as gfile:
        return gfile.exists(path)


def is_dir(path: str) -> bool:
    """Returns whether there is a directory."""
    if not is_remote(path):
        return os.path.isdir(path)
    with _gfile(path) as gfile:
        return gfile.isdir(path)


def listing(path: str | os.PathLike[str]) -> list[str]:
    """Returns the names in a directory, sorted; none if there is no such directory.

    Raises:
      OSError: if it cannot be read.
    """
    if not is_remote(path):
        return sorted(os.listdir(path)) if os.path.isdir(path) else []
    with contextlib.suppress(FileNotFoundError), _gfile(path) as gfile:
        return sorted({name.rstrip("/") for name in gfile.listdir(path)})  # Directories of gs:// come with a slash.
    return []


def make_dirs(path: str) -> None:
    """Makes a directory and those above it, where they are missing.

    Raises:
      OSError: if that fails.
    """
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)
        return
    with _gfile(path) as gfile:
        gfile.makedirs(path)


def remove(path: str) -> None:
    """Removes a file or a directory with all that is in it; what is not there, or cannot be removed, stays so."""
    if not is_remote(path):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.remove(path)
        return
    with contextlib.suppress(OSError), _gfile(path) as gfile:
        (gfile.rmtree if gfile.isdir(path) else gfile.remove)(path)


def move_dir(source: str, target: str, last: str) -> None:
    """Moves a directory of files to a name that is free.

    Here that is one rename. An object store has none for directories: its files are moved one by one.

    Args:
      source: the directory.
      target: its new name.
      last: the file to move last. Where it is, the others are.

    Raises:
      OSError: if that fails.
    """
    if not is_remote(source):
        os.rename(source, target)
        return
    make_dirs(target)
    with _gfile(target) as gfile:
        for name in sorted(listing(source), key=lambda name: name == last):
            gfile.rename(join(source, name), join(target, name), overwrite=True)
    remove(source)


@contextlib.contextmanager
def reading(path: str) -> Iterator[IO[bytes]]:
    """Gives a file's bytes to read, as `open` does.

    Raises:
      OSError: if it cannot be read.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            yield file
        return
    with _gfile(path) as gfile, gfile.GFile(path, "rb") as file:
        yield file


def read(path: str) -> bytes:
    """Returns what is in a file.

    Raises:
      OSError: if it cannot be read.
    """
    with reading(path) as file:
        return file.read()


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
    """Gives a temporary local name to write to; the file takes its real name when the block ends well, else it goes.

    Args:
      path: the real name; its directory is made.
      flush: wait for the disk.

    Raises:
      OSError: if it cannot be written.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as directory:
            yield (temporary := join(directory, name_of(path)))
            make_dirs(parent(path))
            with _gfile(path) as gfile:
                # A put replaces an object, but ram:// would add to a file: one that is there is replaced by a rename.
                there = gfile.exists(path)
                put = join(parent(path), f".{name_of(directory)}-{name_of(path)}") if there else path
                gfile.copy(temporary, put, overwrite=True)
                if there:
                    gfile.rename(put, path, overwrite=True)
        return
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        yield path  # Not its real path: /dev/stdout may lead to a pipe, which has none.
        return
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
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
    return json.loads(read(path).decode())


def append_line(path: str, line: str) -> None:
    """Adds a line to a text file, whole or not at all. After a half line, which a crash may have left, it begins a new one.

    Object stores cannot append: there the file is written anew, so no two processes may add to it at a time.

    Raises:
      OSError: if it cannot be written; the file is as it was before.
    """
    data = f"{line}\n".encode()
    if is_remote(path):
        old = read(path) if exists(path) else b""
        write(path, old + (b"\n" if old and not old.endswith(b"\n") else b"") + data)
        return
    with open(path, "a+b", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        if before:
            file.seek(-1, os.SEEK_END)
            data = data if file.read(1) == b"\n" else b"\n" + data
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def sync(path: str) -> None:
    """Flushes a file or a directory to the disk; elsewhere what is written is there."""
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(directory: str) -> Iterator[None]:
    """Holds a directory, which is made, for one training: a second one is refused.

    The file `training.lock` says who holds it. Here the system takes the lock from a process that has ended, however it
    ended. Object stores have no locks: there the next one is warned, and goes on.

    Raises:
      UserError: if another process holds it.
      OSError: if it cannot be written.
    """
    path, since = join(directory, _LOCK), time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    owner = f"process {os.getpid()} on {socket.gethostname()}, since {since}"
    make_dirs(directory)
    if is_remote(directory):
        if exists(path):
            logging.warning(
                "%s was left by %s. There are no locks here: if it still runs, end one of the two.", path, read(path).decode()
            )
        write(path, owner)
        try:
            yield
        finally:
            remove(path)
        return
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            who = file.read() or "another process"
            raise UserError(f"--model_dir={directory} is in use ({who}): wait for its end, or choose another.") from error
        except OSError as error:
            logging.warning("%s cannot be locked (%s): see that no other process trains there.", directory, error.strerror)
        file.seek(0)
        if last := file.read():
            logging.warning("The lock of %s is taken over: %s has ended without a word.", directory, last)
        file.truncate(0)
        file.write(owner)
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)


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
