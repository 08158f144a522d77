"""TFRecord files read by index: any record of any file, checked against its checksum."""

import concurrent.futures
import contextlib
import os
import struct
from collections.abc import Callable, Iterator

import google_crc32c
import numpy as np
import tensorflow as tf

from sagan_tf.data.loader import CorruptExample
from sagan_tf.errors import UserError

__all__ = ["READ_ERRORS", "RecordFiles", "index_file", "reason"]

# A record: length (uint64), masked checksum of the length, the data, masked checksum of the data.
_HEADER, _FOOTER = 12, 4
_GZIP_MAGIC = b"\x1f\x8b"
# Files indexed at once: what is waited for is the disk or the network.
_INDEXERS = 16

READ_ERRORS = (OSError, tf.errors.OpError)


def reason(error: Exception) -> str:
    """Returns why a file could not be read, without its name."""
    return getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)


def _masked_crc(value: bytes) -> int:
    crc = google_crc32c.value(value)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@contextlib.contextmanager
def _open(path: str) -> Iterator[tuple[Callable[[int, int], bytes], int]]:
    """Opens a local or remote file for reading here and there: gives `read(offset, length)`, and its size."""
    if "://" in path:
        with tf.io.gfile.GFile(path, "rb") as file:

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            yield read, file.size()
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):  # Or the kernel would read all that lies between two headers.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        yield lambda offset, length: os.pread(descriptor, length, offset), os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def index_file(path: str) -> np.ndarray:
    """Returns `[N, 2]` int64: offset and length of the data of each record, from the headers alone.

    Raises:
      UserError: if the file cannot be read or is truncated, naming the byte where it goes wrong.
    """
    entries, at = [], 0
    try:
        with _open(path) as (read, size):
            while at < size:
                header = read(at, _HEADER)
                length, crc = struct.unpack("<QI", header) if len(header) == _HEADER else (0, -1)
                if crc != _masked_crc(header[:8]):
                    if at == 0 and header.startswith(_GZIP_MAGIC):
                        raise UserError(f"The record file {path} is compressed, and cannot be read by index: gunzip it.")
                    raise UserError(f"The record file {path} is damaged at byte {at}: make or copy it again.")
                end = at + _HEADER + length + _FOOTER
                if end > size:
                    raise UserError(
                        f"The record file {path} is truncated: its record at byte {at} ends {end - size} bytes after "
                        "the file; make or copy it again."
                    )
                entries.append((at + _HEADER, length))
                at = end
    except READ_ERRORS as error:
        raise UserError(f"The record file {path} cannot be read ({reason(error)}): check the path and its permissions.") from error
    return np.array(entries, np.int64).reshape(-1, 2)


class RecordFiles:
    """Records of several files under one index.

    Args:
      paths: the files, local or of any file system that TensorFlow knows (`gs://...`).
      slices: for each file the part of its records to use; None: all.

    Attributes:
      counts: records used of each file.

    Raises:
      UserError: if a file cannot be read or is truncated.
    """

    def __init__(self, paths: list[str], slices: list[slice] | None = None):
        with concurrent.futures.ThreadPoolExecutor(_INDEXERS) as pool:
            indices = list(pool.map(index_file, paths))
        if slices:
            indices = [index[part] for index, part in zip(indices, slices, strict=True)]
        self.paths = paths
        self.counts = [len(index) for index in indices]
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._entries = np.concatenate(indices)

    def __len__(self) -> int:
        return len(self._entries)

    def _path(self, index: int) -> str:
        return self.paths[np.searchsorted(self._starts, index, side="right") - 1]

    def where(self, index: int) -> str:
        """Returns the place of a record in words: its file and byte."""
        return f"the record at byte {self._entries[index][0] - _HEADER} of {self._path(index)}"

    def read(self, index: int) -> bytes:
        """Returns the data of one record.

        Raises:
          CorruptExample: if it cannot be read or does not match its checksum.
        """
        offset, length = map(int, self._entries[index])
        try:
            with _open(self._path(index)) as (read, _):
                data = read(offset, length + _FOOTER)
        except READ_ERRORS as error:
            raise CorruptExample(f"{self.where(index)} cannot be read ({reason(error)})") from error
        value, footer = data[:length], data[length:]
        if len(footer) != _FOOTER or struct.unpack("<I", footer)[0] != _masked_crc(value):
            raise CorruptExample(f"{self.where(index)} does not match its checksum")
        return value
