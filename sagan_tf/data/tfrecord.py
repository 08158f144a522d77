"""`tfrecord:GLOB`: the reference's raw records, and encoded ones as most tools write them."""

import json
import os

import numpy as np
import tensorflow as tf

from sagan_tf.data import images
from sagan_tf.data.loader import CorruptExample, Loader, data_error
from sagan_tf.data.record_files import READ_ERRORS, RecordFiles, reason
from sagan_tf.errors import UserError

__all__ = ["CLASSES_FILE", "MANIFEST_FILE", "SKIPPED_FILE", "TFRecordSource"]

MANIFEST_FILE = "manifest.json"
CLASSES_FILE = "classes.txt"
SKIPPED_FILE = "skipped.txt"

# The two kinds of record: (key of the image, key of the label, whether the image is encoded).
RAW = ("image_raw", "label", False)
ENCODED = ("image/encoded", "image/class/label", True)


class TFRecordSource:
    """Images in TFRecord files, by index.

    Raw records hold `image_raw` (image_size * image_size * 3 bytes) and `label`; encoded ones
    `image/encoded` (a PNG or JPEG file, cropped and resized here) and `image/class/label`. Labels are
    used as they are: 0 to num_classes - 1. A `manifest.json` and a `classes.txt` beside the files, as
    `sagan-records` writes them, are checked and used.

    Args:
      pattern: glob pattern of the files, local or of any file system that TensorFlow knows.
      image_size: in pixels.
      num_classes: as configured; -1: as `classes.txt` says.
      max_corrupt: corrupt records to pass over.

    Raises:
      UserError: if there are no files, one is damaged or missing, or they hold something else.
    """

    def __init__(self, pattern: str, image_size: int, num_classes: int = -1, max_corrupt: int = 0):
        paths = _files(pattern)
        self._image_size = image_size
        self._records = RecordFiles(paths)
        self.num_examples = len(self._records)
        if not self.num_examples:
            raise UserError(f"--dataset=tfrecord:{pattern}: the files hold no records; make them again.")
        counts = dict(zip(paths, self._records.counts, strict=True))
        directories = sorted({os.path.dirname(path) for path in paths})
        for directory in directories:
            _check_manifest(directory, {path: count for path, count in counts.items() if os.path.dirname(path) == directory})
        class_names = _class_names(directories)
        if num_classes < 0 and class_names is None:
            raise UserError(
                f"--dataset=tfrecord:{pattern} does not say how many classes it has (there is no {CLASSES_FILE} in "
                f"{directories[0] or '.'}): pass --num_classes, or 0 to train without classes."
            )
        self.class_names = class_names or ()
        self.num_classes = max(len(self.class_names), num_classes)
        self._label_end = (self.num_classes or None) if num_classes else None  # Without classes, no label is looked at.
        self._image_key, self._label_key, self._encoded = self._kind(pattern, max_corrupt)
        self.examples = Loader(self._load, image_size, self.num_examples, max_corrupt)

    def _features(self, index: int):
        value = self._records.read(index)
        try:
            return tf.train.Example.FromString(value).features.feature
        except Exception as error:  # The protobuf library has an error of its own for each of its implementations.
            raise CorruptExample(f"{self._records.where(index)} is not a tf.train.Example ({error})") from error

    def _kind(self, pattern: str, max_corrupt: int) -> tuple[str, str, bool]:
        """Returns the kind of the records, which the first that can be read shows."""
        for index in range(self.num_examples):
            try:
                features = self._features(index)
                break
            except CorruptExample as error:
                if index == min(max_corrupt, self.num_examples - 1):
                    raise UserError(f"{error}: make or copy the file again.") from error
        for kind in (RAW, ENCODED):
            if kind[0] in features and (kind[1] in features or self._label_end is None):
                value = features[kind[0]].bytes_list.value
                if kind == RAW and value and len(value[0]) != self._image_size**2 * 3:
                    raise UserError(f"The records of {pattern} hold {self._wrong_size(value[0])}")
                return kind
        raise UserError(
            f"The records of {pattern} hold {', '.join(sorted(features)) or 'nothing'}; wanted are {RAW[0]} and {RAW[1]}, "
            f"or {ENCODED[0]} and {ENCODED[1]}: make them with sagan-records."
        )

    def _wrong_size(self, raw: bytes) -> str:
        side, wanted = round((len(raw) / 3) ** 0.5), self._image_size
        remedy = f"make them again with --size={wanted}."
        if side * side * 3 != len(raw):
            return f"{len(raw)} bytes per image, not those of {wanted}x{wanted} pixels: {remedy}"
        return f"images of {side}x{side} pixels, not {wanted}x{wanted}: pass --image_size={side}, or {remedy}"

    def _load(self, index: int) -> tuple[np.ndarray, int]:
        features = self._features(index)
        value, label = features[self._image_key].bytes_list.value, features[self._label_key].int64_list.value
        if not value or (not label and self._label_end is not None):
            raise CorruptExample(f"{self._records.where(index)} has no {self._label_key if value else self._image_key}")
        label = label[0] if label else 0
        if self._label_end is not None and not 0 <= label < self._label_end:
            raise data_error(
                f"{self._records.where(index)} has label {label}, outside 0 to {self._label_end - 1}: pass a larger "
                f"--num_classes (labels that start at 1 need one more than there are classes), or repair the records."
            )
        if not self._encoded:
            if len(value[0]) != self._image_size**2 * 3:
                raise data_error(f"{self._records.where(index)} holds {self._wrong_size(value[0])}")
            return np.frombuffer(value[0], np.uint8), label
        try:
            return images.preprocess(value[0], self._image_size), label
        except images.DECODE_ERRORS as error:
            raise CorruptExample(f"{self._records.where(index)} holds no image that can be read ({error})") from error


def _files(pattern: str) -> list[str]:
    """Returns the record files of a pattern, without the text files that stand beside them."""
    try:
        pattern = os.path.expanduser(pattern)
        if tf.io.gfile.isdir(pattern):
            raise UserError(f"--dataset=tfrecord:{pattern} is a directory: name its files, as in 'tfrecord:{pattern}/*.tfrecord'.")
        beside = (MANIFEST_FILE, CLASSES_FILE, SKIPPED_FILE)
        paths = [path for path in sorted(tf.io.gfile.glob(pattern)) if os.path.basename(path) not in beside]
        paths = [path for path in paths if not tf.io.gfile.isdir(path)]
    except READ_ERRORS as error:
        raise UserError(f"--dataset=tfrecord:{pattern} cannot be read ({reason(error)}): check the path.") from error
    if not paths:
        raise UserError(f"--dataset=tfrecord:{pattern}: no file matches; check the path, and quote the pattern.")
    return paths


def _read_text(path: str) -> str | None:
    """Returns the content of a text file, or None if there is none."""
    try:
        if not tf.io.gfile.exists(path):
            return None
        with tf.io.gfile.GFile(path) as file:
            return file.read()
    except (*READ_ERRORS, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): make the records again.") from error


def _check_manifest(directory: str, counts: dict[str, int]) -> None:
    """Compares the files of a directory with what `sagan-records` says it wrote, if it did."""
    path = os.path.join(directory, MANIFEST_FILE)
    text = _read_text(path)
    if text is None:
        return
    try:
        manifest = json.loads(text)
        shards, complete = dict(manifest["shards"]), manifest["complete"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}): make the records again, or remove it.") from error
    if not complete:
        raise UserError(f"{path} says that the records are not all made yet: run sagan-records to its end.")
    for file, count in counts.items():
        expected = shards.get(os.path.basename(file))
        if expected is None:
            raise UserError(f"{file} is not listed in the {MANIFEST_FILE} beside it: move it elsewhere, or narrow the pattern.")
        if expected != count:
            raise UserError(f"{file} holds {count} records, but {MANIFEST_FILE} says {expected}: make or copy it again.")
    missing = sorted(name for name in shards if not tf.io.gfile.exists(os.path.join(directory, name)))
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"{MANIFEST_FILE} of {directory or '.'} lists files that are missing: {', '.join(missing[:5])}{more}; copy them too, "
            "or run sagan-records again."
        )


def _class_names(directories: list[str]) -> tuple[str, ...] | None:
    """Returns the class names that the directories agree on, none if the images have no classes; None if no file tells."""
    found = {}
    for directory in directories:
        text = _read_text(os.path.join(directory, CLASSES_FILE))
        if text is not None:
            found[directory] = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(set(found.values())) > 1:
        raise UserError(f"The {CLASSES_FILE} of {' and '.join(found)} differ: their labels do not mean the same; use one of them.")
    return next(iter(found.values()), None)
