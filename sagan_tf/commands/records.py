"""`sagan-records`: turns a folder of images into sharded TFRecords."""

import sys

from absl import flags

from sagan_tf.commands import cli
from sagan_tf.data.folder_to_records import make_records
from sagan_tf.errors import UserError

__all__ = ["define_flags", "main", "run"]

FLAGS = flags.FLAGS
# What shells report for a command ended by SIGINT.
EXIT_INTERRUPTED = 130


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("input", "", "Folder of images: a subfolder per class, or flat.")
    flags.DEFINE_string("output", "", "Directory to write the records to.")
    flags.DEFINE_integer("size", 128, "Height and width of the stored images, in pixels.", lower_bound=1)
    flags.DEFINE_integer("shards", 0, "Files to write; 0: one for every 1,024 images.", lower_bound=0)
    flags.DEFINE_integer("workers", 0, "Processes to work in; 0: one per core.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Seed of the order in which images are spread over the shards.", lower_bound=0)
    flags.DEFINE_boolean("skip_errors", False, "Skip images that cannot be read, and list them in skipped.txt.")


def main() -> None:
    """Turns a folder of images into sharded TFRecords with the reference's preprocessing.

    sagan-records --input=imagenet/train --output=imagenet128 --size=128

    The folder holds a subfolder per class (ImageNet's layout included), or images directly. Each image is
    cropped to its centre square, resized with Pillow's bilinear filter, and stored raw as `image_raw`, with
    `label` (the place of its class among the sorted folder names) and `filename`. Beside the shards stand
    `classes.txt` and `manifest.json`. Interrupted, the same command goes on with the shards that are missing.
    """
    if not FLAGS.input or not FLAGS.output:
        raise UserError("--input and --output are needed: a folder of images, and a directory for the records.")
    try:
        count = make_records(FLAGS.input, FLAGS.output, FLAGS.size, FLAGS.shards, FLAGS.workers, FLAGS.seed, FLAGS.skip_errors)
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on with the shards that are missing.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    print(f"{count} records in {FLAGS.output}; train on them with --dataset='tfrecord:{FLAGS.output}/*.tfrecord'.")


def run() -> None:
    """The console script."""
    cli.run(main, define_flags, settings=False)


if __name__ == "__main__":
    run()
