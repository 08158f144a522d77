"""`tfds:NAME`: any image dataset of TensorFlow Datasets that has been prepared on this machine."""

import os
from collections.abc import Callable

import numpy as np

from sagan_tf.config import Config
from sagan_tf.data import images
from sagan_tf.data.loader import CorruptExample, Loader, data_error
from sagan_tf.data.record_files import RecordFiles
from sagan_tf.errors import UserError

__all__ = ["TFDSSource"]


class TFDSSource:
    """Images of a TFDS dataset, by index; they are cropped and resized to `config.image_size`.

    Nothing is downloaded here: preparing ImageNet takes hours and belongs before a run.

    Args:
      name: of the dataset, such as `cifar10` or `imagenet_resized/64x64`.
      config: `data_dir`, `data_split`, `image_size`, `num_classes`, `skip_corrupt_records`.

    Raises:
      UserError: if it is unknown or not prepared, has no such split, or no images.
    """

    def __init__(self, name: str, config: Config):
        import tensorflow_datasets as tfds

        where = config.data_dir or None
        try:
            builder = tfds.builder(name, data_dir=where)
        except (tfds.core.DatasetNotFoundError, ImportError, ValueError) as error:
            raise UserError(f"--dataset=tfds:{name} is not known to TFDS ({str(error).splitlines()[0]}).") from error
        if not os.path.exists(os.path.join(builder.data_dir, "dataset_info.json")):
            option = f", data_dir={config.data_dir!r}" if where else ""
            raise UserError(
                f"--dataset=tfds:{name} is not prepared in {builder.data_dir}; do that once with: "
                f'python -c "import tensorflow_datasets as tfds; tfds.load({name!r}{option})"'
            )
        features = builder.info.features
        self._image_key = _key(features, "image", tfds.features.Image)
        self._label_key = _key(features, "label", tfds.features.ClassLabel)
        if not self._image_key:
            raise UserError(f"--dataset=tfds:{name} has no images, only {', '.join(features)}: choose another.")
        self.class_names = tuple(features[self._label_key].names or ()) if self._label_key else ()
        self.num_classes = features[self._label_key].num_classes or 0 if self._label_key else 0
        try:
            split = builder.info.splits[config.data_split]
        except (KeyError, ValueError) as error:
            raise UserError(
                f"--data_split={config.data_split} is none of tfds:{name}: {', '.join(builder.info.splits)}."
            ) from error
        self._image_size = config.image_size
        self._label_end = self.num_classes if config.num_classes else None  # Without classes, no label is looked at.
        self.num_examples = split.num_examples
        if not self.num_examples:
            raise UserError(f"--data_split={config.data_split} of tfds:{name} is empty.")
        decoders = {self._image_key: tfds.decode.SkipDecoding()}
        self._where: Callable[[int], str] = f"example {{}} of {config.data_split} of tfds:{name}".format
        if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
            records = _record_files(split)
            self._where = records.where
            self._read = lambda index: features.deserialize_example_np(records.read(index), decoders=decoders)
        else:
            self._read = builder.as_data_source(split=config.data_split, decoders=decoders).__getitem__
        self.examples = Loader(self._load, config.image_size, self.num_examples, config.skip_corrupt_records)

    def _load(self, index: int) -> tuple[np.ndarray, int]:
        example = self._read(index)
        label = int(example[self._label_key]) if self._label_key else 0
        # Test splits often carry -1 for an unknown label.
        if self._label_end and not 0 <= label < self._label_end:
            raise data_error(
                f"{self._where(index)} has label {label}, outside 0 to {self._label_end - 1}: choose a labelled "
                "--data_split, or --num_classes=0."
            )
        try:
            return images.preprocess(bytes(example[self._image_key]), self._image_size), label
        except images.DECODE_ERRORS as error:
            raise CorruptExample(f"{self._where(index)} holds no image that can be read ({error})") from error


def _key(features, usual: str, kind: type) -> str | None:
    """Returns the name of the feature of a kind: the usual one, or the first."""
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    return usual if usual in found else next(iter(found), None)


def _record_files(split) -> RecordFiles:
    """Returns the records of a split, or of a slice of one."""
    parts = split.file_instructions
    ends = [None if part.take == -1 else part.skip + part.take for part in parts]
    slices = [slice(part.skip, end) for part, end in zip(parts, ends, strict=True)]
    return RecordFiles([os.fspath(part.filename) for part in parts], slices)
