r"""Turns a folder of images into sharded TFRecords with the reference's preprocessing.

python tools/make_tfrecords.py --input=imagenet/train --output=imagenet128 --size=128

The folder holds a subfolder per class (ImageNet's layout included), or images directly. Each image is
cropped to its centre square, resized with Pillow's bilinear filter, and stored raw as `image_raw`, with
`label` (the place of its class among the sorted folder names) and `filename`. Beside the shards stand
`classes.txt` and `manifest.json`. Interrupted, the same command goes on with the shards that are missing.
"""

import concurrent.futures
import json
import multiprocessing
import os
import random
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags
from tqdm import tqdm

from sagan_tf.checkpoints import write_file
from sagan_tf.data import images
from sagan_tf.data.tfrecord import CLASSES_FILE, MANIFEST_FILE
from sagan_tf.errors import UserError

FLAGS = flags.FLAGS
SKIPPED_FILE = "skipped.txt"

flags.DEFINE_string("input", "", "Folder of images: a subfolder per class, or flat.")
flags.DEFINE_string("output", "", "Directory to write the records to.")
flags.DEFINE_integer("size", 128, "Height and width of the stored images, in pixels.", lower_bound=1)
flags.DEFINE_integer("shards", 0, "Files to write; 0: one for every 1,024 images.", lower_bound=0)
flags.DEFINE_integer("workers", 0, "Processes to work in; 0: one per core.", lower_bound=0)
flags.DEFINE_integer("seed", 0, "Seed of the order in which images are spread over the shards.", lower_bound=0)
flags.DEFINE_boolean("skip_errors", False, f"Skip images that cannot be read, and list them in {SKIPPED_FILE}.")


def write_shard(path: str, examples: list[tuple[str, int]], size: int, skip_errors: bool) -> tuple[int, list[str]]:
    """Writes one shard, whole or not at all.

    Args:
      path: of the shard.
      examples: path and label of each image.
      size: to resize to, in pixels.
      skip_errors: go on after an image that cannot be read.

    Returns:
      How many records it holds, and a line for each image skipped.

    Raises:
      UserError: naming the first image that cannot be read, unless `skip_errors`.
    """
    import tensorflow as tf

    def feature(value: "bytes | int") -> tf.train.Feature:
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    skipped = []
    temporary = f"{path}.tmp"
    with tf.io.TFRecordWriter(temporary) as writer:
        for file, label in examples:
            try:
                pixels = images.preprocess(file, size)
            except images.DECODE_ERRORS as error:
                if not skip_errors:
                    message = f"{file} cannot be read as an image ({error}): repair or remove it, or pass --skip_errors."
                    raise UserError(message) from error
                skipped.append(f"{file}: {error}")
                continue
            features = {
                "image_raw": feature(pixels.tobytes()),
                "label": feature(label),
                "filename": feature(os.path.basename(file).encode()),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    os.replace(temporary, path)
    return len(examples) - len(skipped), skipped


def plan(folder: str, shards: int, seed: int) -> tuple[dict[str, list[tuple[str, int]]], tuple[str, ...]]:
    """Returns which images go into which shard, and the class names.

    Raises:
      UserError: if the folder is missing, empty, or partly flat.
    """
    try:
        paths, labels, class_names = images.list_folder(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    examples = list(zip(paths, labels, strict=True))
    random.Random(seed).shuffle(examples)
    shards = min(shards or -(-len(examples) // 1024), len(examples))
    names = [f"images-{number:05d}-of-{shards:05d}.tfrecord" for number in range(shards)]
    return {name: examples[number::shards] for number, name in enumerate(names)}, class_names


def make(folder: str, output: str, size: int, shards: int = 0, workers: int = 0, seed: int = 0, skip_errors: bool = False) -> int:
    """Writes the records that are not there yet, and returns how many there are in all.

    Raises:
      UserError: if the folder or an image cannot be read, the output cannot be written, or holds
        records made with other settings.
    """
    content, class_names = plan(folder, shards, seed)
    images_in_all = sum(map(len, content.values()))
    options = {"input": os.path.abspath(folder), "images": images_in_all, "size": size, "shards": len(content), "seed": seed}
    manifest_path = os.path.join(output, MANIFEST_FILE)
    manifest = {"complete": False, "options": options, "classes": len(class_names), "shards": {}, "skipped": []}
    try:
        os.makedirs(output, exist_ok=True)
        if os.path.exists(manifest_path):
            with open(manifest_path, encoding="utf-8") as file:
                manifest = json.load(file)
            if manifest["options"] != options:
                changed = [
                    f"{key} {manifest['options'].get(key)}" for key in options if manifest["options"].get(key) != options[key]
                ]
                raise UserError(f"--output={output} holds records made with other settings ({', '.join(changed)}): choose another.")
        write_file(manifest_path, json.dumps(manifest, indent=2) + "\n")
        write_file(os.path.join(output, CLASSES_FILE), "".join(f"{name}\n" for name in class_names))
    except OSError as error:
        raise UserError(f"--output={output} cannot be written ({error.strerror}): choose another.") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{manifest_path} cannot be read ({error}): remove the directory and start again.") from error

    done = {name for name in manifest["shards"] if os.path.exists(os.path.join(output, name))}
    # spawn: TensorFlow, once imported, does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(workers or os.cpu_count(), mp_context=context) as pool,
        tqdm(total=images_in_all, unit="image", disable=None) as bar,
    ):
        bar.update(sum(len(content[name]) for name in done))
        futures = {
            pool.submit(write_shard, os.path.join(output, name), examples, size, skip_errors): name
            for name, examples in content.items()
            if name not in done
        }
        try:
            for future in concurrent.futures.as_completed(futures):
                name = futures[future]
                count, skipped = future.result()
                manifest["shards"][name] = count
                manifest["skipped"] += skipped
                write_file(manifest_path, json.dumps(manifest, indent=2) + "\n")
                bar.update(len(content[name]))
        except OSError as error:
            raise UserError(f"--output={output} cannot be written ({error.strerror}): free some space and run again.") from error
        finally:
            pool.shutdown(cancel_futures=True)
    manifest["complete"] = True
    manifest["shards"] = dict(sorted(manifest["shards"].items()))
    write_file(manifest_path, json.dumps(manifest, indent=2) + "\n")
    if manifest["skipped"]:
        write_file(os.path.join(output, SKIPPED_FILE), "".join(f"{line}\n" for line in sorted(manifest["skipped"])))
    return sum(manifest["shards"].values())


def main(argv: list[str]) -> None:
    """Makes the records that the flags describe."""
    try:
        if len(argv) > 1:
            raise UserError(f"{argv[1]!r} is not a flag: flags start with -- (--help lists them).")
        if not FLAGS.input or not FLAGS.output:
            raise UserError("--input and --output are needed: a folder of images, and a directory for the records.")
        count = make(FLAGS.input, FLAGS.output, FLAGS.size, FLAGS.shards, FLAGS.workers, FLAGS.seed, FLAGS.skip_errors)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"{count} records in {FLAGS.output}; train on them with --dataset='tfrecord:{FLAGS.output}/*.tfrecord'.")


if __name__ == "__main__":
    app.run(main)
