r"""Turns a folder of images into sharded TFRecords with the reference's preprocessing.

python tools/make_tfrecords.py --input=imagenet/train --output=imagenet128 --size=128

The folder holds a subfolder per class (ImageNet's layout included), or images directly. Each image is
cropped to its centre square, resized with Pillow's bilinear filter, and stored raw as `image_raw`, with
`label` (the place of its class among the sorted folder names) and `filename`. Beside the shards stand
`classes.txt` and `manifest.json`. Interrupted, the same command goes on with the shards that are missing.
"""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import threading
from typing import Any

import tensorflow as tf
from absl import app, flags
from tqdm import tqdm

from sagan_tf.data import images
from sagan_tf.data.records import reason
from sagan_tf.data.tfrecord import CLASSES_FILE, MANIFEST_FILE, SKIPPED_FILE
from sagan_tf.errors import UserError
from sagan_tf.files import writing
from sagan_tf.runs.checkpoints import write_file

FLAGS = flags.FLAGS
# What shells report for a command ended by SIGINT.
EXIT_INTERRUPTED = 130


def define_flags() -> None:
    """Defines the flags of this tool."""
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
      UserError: naming the first image that cannot be read, unless `skip_errors`, or the shard that
        cannot be written.
    """

    def feature(value: "bytes | int") -> tf.train.Feature:
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    skipped = []
    temporary = f"{path}.tmp"
    try:
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
                    "filename": feature(os.fsencode(os.path.basename(file))),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True))
        os.replace(temporary, path)
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"{path} cannot be written ({reason(error)}): see that there is space, and run again.") from error
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


def _digest(content: dict[str, list[tuple[str, int]]], folder: str) -> str:
    """Returns a number for the names and labels of the images, so that a changed folder is noticed."""
    digest = hashlib.sha256()
    for name, examples in content.items():
        digest.update(repr((name, [(os.path.relpath(file, folder), label) for file, label in examples])).encode())
    return digest.hexdigest()[:16]


def _begin(output: str, options: dict[str, Any], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the manifest of the output directory, a new one or that of the run to go on with.

    Raises:
      UserError: if the directory cannot be written, or holds records made with other settings.
    """
    manifest = {"complete": False, "examples": 0, "options": options, "classes": len(class_names), "shards": {}, "skipped": []}
    with writing("output", output):
        os.makedirs(output, exist_ok=True)
        if os.path.exists(os.path.join(output, MANIFEST_FILE)):
            manifest |= _finished(output, options)
        _write_manifest(output, manifest)
        write_file(os.path.join(output, CLASSES_FILE), "".join(f"{name}\n" for name in class_names))
    return manifest


def _finished(output: str, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the shards that an earlier run with the same options finished, and the images it skipped."""
    path = os.path.join(output, MANIFEST_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        before = {key: found["options"].get(key) for key in options}
        shards = {name: int(count) for name, count in found["shards"].items() if os.path.exists(os.path.join(output, name))}
        skipped = list(found["skipped"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}): remove the directory and start again.") from error
    changed = [f"{key} {before[key]}, not {options[key]}" for key in options if before[key] != options[key]]
    if changed:
        raise UserError(f"--output={output} holds records made with other settings ({changed[0]}): choose another.")
    return {"shards": shards, "skipped": skipped}


def _write_manifest(output: str, manifest: dict[str, Any]) -> None:
    manifest["shards"] = dict(sorted(manifest["shards"].items()))
    manifest["skipped"] = sorted(set(manifest["skipped"]))
    manifest["examples"] = sum(manifest["shards"].values())
    write_file(os.path.join(output, MANIFEST_FILE), json.dumps(manifest, indent=2) + "\n")


def make(folder: str, output: str, size: int, shards: int = 0, workers: int = 0, seed: int = 0, skip_errors: bool = False) -> int:
    """Writes the records that are not there yet, and returns how many there are in all.

    Raises:
      UserError: if the folder or an image cannot be read, the output cannot be written, or holds
        records made with other settings.
    """
    folder, output = os.path.abspath(os.path.expanduser(folder)), os.path.expanduser(output)
    content, class_names = plan(folder, shards, seed)
    images_in_all = sum(map(len, content.values()))
    options = {"input": folder, "images": images_in_all, "digest of names": _digest(content, folder)}
    options |= {"size": size, "shards": len(content), "seed": seed}
    manifest = _begin(output, options, class_names)
    todo = {name: examples for name, examples in content.items() if name not in manifest["shards"]}
    try:
        if todo:
            _write_shards(todo, images_in_all, output, manifest, size, workers or os.cpu_count() or 1, skip_errors)
        manifest["complete"] = True
        _write_manifest(output, manifest)
        if manifest["skipped"]:
            write_file(os.path.join(output, SKIPPED_FILE), "".join(f"{line}\n" for line in manifest["skipped"]))
    except OSError as error:
        raise UserError(f"--output={output} cannot be written ({error.strerror}): free some space and run again.") from error
    return manifest["examples"]


def _write_shards(
    todo: dict[str, list[tuple[str, int]]],
    images_in_all: int,
    output: str,
    manifest: dict[str, Any],
    size: int,
    workers: int,
    skip_errors: bool,
) -> None:
    """Writes shards in parallel processes, and notes each in the manifest when it is whole."""
    done = images_in_all - sum(map(len, todo.values()))
    with (
        _executor(min(workers, len(todo))) as pool,
        tqdm(total=images_in_all, initial=done, unit="image", disable=None) as bar,
    ):
        futures = {
            pool.submit(write_shard, os.path.join(output, name), examples, size, skip_errors): name
            for name, examples in todo.items()
        }
        try:
            for future in concurrent.futures.as_completed(futures):
                name = futures[future]
                manifest["shards"][name], skipped = future.result()
                manifest["skipped"] += skipped
                _write_manifest(output, manifest)
                bar.update(len(todo[name]))
        except concurrent.futures.BrokenExecutor as error:
            raise UserError(
                "A worker process was killed (out of memory?): run the same command again, with fewer --workers; it goes on "
                "where it stopped."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _executor(workers: int) -> concurrent.futures.Executor:
    """Returns what the shards are written in: processes, or a thread of this one where one worker is enough."""
    if workers == 1:
        return concurrent.futures.ThreadPoolExecutor(1)
    # spawn: TensorFlow, once imported, does not survive a fork.
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent process, and ends with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with(parent):
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with, args=[multiprocessing.parent_process()], daemon=True).start()


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
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on with the shards that are missing.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    print(f"{count} records in {FLAGS.output}; train on them with --dataset='tfrecord:{FLAGS.output}/*.tfrecord'.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
