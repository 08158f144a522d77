"""`tfrecord:GLOB`: the reference's raw records, and encoded ones as most tools write them."""

import glob
import json
import os

import tensorflow as tf

from sagan_tf.data import images
from sagan_tf.data.loading import CorruptExample, Loader, require, to_images
from sagan_tf.data.records import RecordFiles
from sagan_tf.errors import UserError

MANIFEST_FILE = "manifest.json"
CLASSES_FILE = "classes.txt"

# The two kinds of record: (key of the image, key of the label, whether the image is encoded).
RAW = ("image_raw", "label", False)
ENCODED = ("image/encoded", "image/class/label", True)


class TFRecordSource:
    """Images in TFRecord files, by index.

    Raw records hold `image_raw` (image_size * image_size * 3 bytes) and `label`; encoded ones
    `image/encoded` (a PNG or JPEG file, cropped and resized here) and `image/class/label`. Labels are
    used as they are: 0 to num_classes - 1. A `manifest.json` and a `classes.txt` beside the files, as
    `tools/make_tfrecords.py` writes them, are checked and used.

    Args:
      pattern: glob pattern of the files.
      image_size: in pixels.
      num_classes: as configured; -1: as `classes.txt` says.
      max_corrupt: corrupt records to pass over.

    Raises:
      UserError: if there are no files, one is damaged or missing, or they hold something else.
    """

    def __init__(self, pattern: str, image_size: int, num_classes: int = -1, max_corrupt: int = 0):
        paths = sorted(path for path in glob.glob(pattern) if os.path.isfile(path))
        if not paths:
            raise UserError(f"--dataset=tfrecord:{pattern}: no file matches.")
        self._image_size = image_size
        self._records = RecordFiles(paths)
        self.num_examples = len(self._records)
        if not self.num_examples:
            raise UserError(f"--dataset=tfrecord:{pattern}: the files hold no records.")
        directory = os.path.dirname(paths[0])
        _check_manifest(directory, dict(zip(paths, self._records.counts, strict=True)))
        self.class_names = _class_names(directory)
        self.num_classes = len(self.class_names)
        if num_classes < 0 and not self.num_classes:
            raise UserError(
                f"--dataset=tfrecord:{pattern} does not say how many classes it has (there is no {CLASSES_FILE} in "
                f"{directory or '.'}): pass --num_classes, or 0 to train without classes."
            )
        self._label_end = (num_classes if num_classes > 0 else self.num_classes) if num_classes else None
        self._image_key, self._label_key, encoded = self._kind(pattern)
        loader = (self._load_encoded, (tf.uint8, tf.int64)) if encoded else (self._load_raw, (tf.string,))
        self._encoded = encoded
        self._loader = Loader(*loader, self.num_examples, max_corrupt)

    def _kind(self, pattern: str) -> tuple[str, str, bool]:
        try:
            features = tf.train.Example.FromString(self._records.read(0)).features.feature
        except CorruptExample as error:
            raise UserError(f"{error}: make or copy the file again.") from error
        except Exception as error:  # The protobuf library has an error of its own for each of its implementations.
            raise UserError(f"{self._records.where(0)} is not a tf.train.Example ({error}).") from error
        for kind in (RAW, ENCODED):
            if kind[0] in features and (kind[1] in features or self._label_end is None):
                size = len(features[kind[0]].bytes_list.value[0])
                if not kind[2] and size != self._image_size**2 * 3:
                    side = round((size / 3) ** 0.5)
                    held = f"images of {side}x{side} pixels" if side * side * 3 == size else f"{size} bytes per image"
                    raise UserError(
                        f"The records of {pattern} hold {held}, not {self._image_size}x{self._image_size}: pass another "
                        "--image_size, or make them again in the size wanted."
                    )
                return kind
        raise UserError(
            f"The records of {pattern} hold {', '.join(sorted(features)) or 'nothing'}; wanted are {RAW[0]} and {RAW[1]}, "
            f"or {ENCODED[0]} and {ENCODED[1]}."
        )

    def _load_raw(self, index: int) -> tuple:
        return (self._records.read(index),)

    def _load_encoded(self, index: int) -> tuple:
        features = tf.train.Example.FromString(self._records.read(index)).features.feature
        try:
            pixels = images.preprocess(features[self._image_key].bytes_list.value[0], self._image_size)
        except images.DECODE_ERRORS + (IndexError,) as error:
            raise CorruptExample(f"{self._records.where(index)} holds no image that can be read ({error})") from error
        labels = features[self._label_key].int64_list.value
        return pixels, labels[0] if labels else 0

    def _describe_label(self, index: int) -> str:
        label = tf.train.Example.FromString(self._records.read(index)).features.feature[self._label_key].int64_list.value[0]
        return (
            f"{self._records.where(index)} has label {label}, outside 0 to {self._label_end - 1}: pass a larger "
            f"--num_classes (labels that start at 1 need one more than there are classes), or repair the records."
        )

    def _describe_size(self, index: int) -> str:
        return f"{self._records.where(index)} is not of {self._image_size}x{self._image_size} pixels: make the records again."

    def examples(self, indices: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the examples of these indices, `{"images", "labels"}`."""
        if self._encoded:
            pixels, labels = self._loader(indices)
        else:
            (serialized,) = self._loader(indices)
            features = {self._image_key: tf.io.FixedLenFeature([], tf.string)}
            features[self._label_key] = tf.io.FixedLenFeature([], tf.int64, 0 if self._label_end is None else None)
            parsed = tf.io.parse_example(tf.ensure_shape(serialized, [None]), features)
            raw, labels = parsed[self._image_key], parsed[self._label_key]
            whole = tf.equal(tf.strings.length(raw), self._image_size**2 * 3)
            with tf.control_dependencies([require(whole, indices, self._describe_size)]):
                pixels = tf.io.decode_raw(tf.identity(raw), tf.uint8)
        if self._label_end is not None:
            ok = (labels >= 0) & (labels < self._label_end)
            with tf.control_dependencies([require(ok, indices, self._describe_label)]):
                labels = tf.identity(labels)
        return {"images": to_images(pixels, self._image_size), "labels": tf.cast(labels, tf.int32)}


def _check_manifest(directory: str, counts: dict[str, int]) -> None:
    """Compares the files with what `tools/make_tfrecords.py` says it wrote, if it did."""
    path = os.path.join(directory, MANIFEST_FILE)
    if not os.path.exists(path):
        return
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        shards, complete = manifest["shards"], manifest["complete"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): make the records again, or remove it.") from error
    if not complete:
        raise UserError(f"{path} says that the records are not all made yet: run tools/make_tfrecords.py to its end.")
    for file, count in counts.items():
        expected = shards.get(os.path.basename(file))
        if expected is not None and expected != count:
            raise UserError(f"{file} holds {count} records, but {MANIFEST_FILE} says {expected}: make or copy it again.")
    missing = sorted(name for name in shards if not os.path.exists(os.path.join(directory, name)))
    if missing:
        raise UserError(f"{MANIFEST_FILE} of {directory} lists files that are missing: {', '.join(missing[:5])}; copy them too.")


def _class_names(directory: str) -> tuple[str, ...]:
    path = os.path.join(directory, CLASSES_FILE)
    if not os.path.exists(path):
        return ()
    with open(path, encoding="utf-8") as file:
        return tuple(line.strip() for line in file if line.strip())
