"""TFRecord files read by index: any record of any file, checked against its checksum."""

import os
import struct

import google_crc32c
import numpy as np

from sagan_tf.data.loading import CorruptExample
from sagan_tf.errors import UserError

# A record: length (uint64), masked checksum of the length, the data, masked checksum of the data.
_HEADER, _FOOTER = 12, 4


def _masked_crc(value: bytes) -> int:
    crc = google_crc32c.value(value)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def index_file(path: str) -> np.ndarray:
    """Returns `[N, 2]` int64: offset and length of the data of each record, from the headers alone.

    Raises:
      UserError: if the file cannot be read or is truncated, naming the byte where it goes wrong.
    """
    try:
        size = os.path.getsize(path)
        entries, at = [], 0
        # Small reads: of a record only its header is wanted.
        with open(path, "rb", buffering=0) as file:
            while at < size:
                header = os.pread(file.fileno(), _HEADER, at)
                length, crc = struct.unpack("<QI", header) if len(header) == _HEADER else (0, -1)
                if crc != _masked_crc(header[:8]):
                    raise UserError(f"The record file {path} is damaged at byte {at}: make or copy it again.")
                end = at + _HEADER + length + _FOOTER
                if end > size:
                    raise UserError(
                        f"The record file {path} is truncated: its record at byte {at} ends {end - size} bytes after "
                        "the file; make or copy it again."
                    )
                entries.append((at + _HEADER, length))
                at = end
    except OSError as error:
        raise UserError(f"The record file {path} cannot be read ({error.strerror}).") from error
    return np.array(entries, np.int64).reshape(-1, 2)


class RecordFiles:
    """Records of several files under one index.

    Args:
      paths: the files, on a local or mounted file system.
      slices: for each file the part of its records to use; None: all.

    Attributes:
      counts: records used of each file.
    """

    def __init__(self, paths: list[str], slices: "list[slice] | None" = None):
        indices = [index_file(path) for path in paths]
        if slices:
            indices = [index[part] for index, part in zip(indices, slices, strict=True)]
        self.paths = paths
        self.counts = [len(index) for index in indices]
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._entries = np.concatenate(indices)

    def __len__(self) -> int:
        return len(self._entries)

    def where(self, index: int) -> str:
        """Returns the place of a record in words: its file and byte."""
        path = self.paths[np.searchsorted(self._starts, index, side="right") - 1]
        return f"the record at byte {self._entries[index][0] - _HEADER} of {path}"

    def read(self, index: int) -> bytes:
        """Returns the data of one record.

        Raises:
          CorruptExample: if it does not match its checksum.
          UserError: if the file is gone.
        """
        path = self.paths[np.searchsorted(self._starts, index, side="right") - 1]
        offset, length = self._entries[index]
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                data = os.pread(descriptor, int(length) + _FOOTER, int(offset))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise CorruptExample(f"{self.where(index)} cannot be read ({error.strerror})") from error
        value, footer = data[:length], data[length:]
        if len(footer) != _FOOTER or struct.unpack("<I", footer)[0] != _masked_crc(value):
            raise CorruptExample(f"{self.where(index)} does not match its checksum")
        return value
