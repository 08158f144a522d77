"""A folder of images becomes sharded TFRecords, with the reference's preprocessing.

Each image is cropped to its centre square, resized with Pillow's bilinear filter, and stored raw as `image_raw`,
with `label` (the place of its class among the sorted folder names) and `filename`. Beside the shards stand
`classes.txt` and `manifest.json`, from which an interrupted run goes on.
"""

import concurrent.futures
import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Generator, Mapping
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from sagan_tf import files
from sagan_tf.data import images
from sagan_tf.data.record_files import reason
from sagan_tf.data.tfrecord import CLASSES_FILE, MANIFEST_FILE, SKIPPED_FILE
from sagan_tf.errors import UserError

__all__ = ["make_records", "plan"]

# Path and label of an image, and the images of each shard by its file name.
Example = tuple[str, int]
Plan = dict[str, list[Example]]


def make_records(
    folder: str, output: str, size: int, shards: int = 0, workers: int = 0, seed: int = 0, skip_errors: bool = False
) -> int:
    """Writes the records that are not there yet.

    Args:
      folder: a subfolder per class (ImageNet's layout included), or images directly.
      output: directory of the records.
      size: height and width of the stored images, in pixels.
      shards: files to write; 0: one for every 1,024 images.
      workers: processes to work in; 0: one per core.
      seed: of the order in which images are spread over the shards.
      skip_errors: skip images that cannot be read, and list them in `skipped.txt`.

    Returns:
      How many records there are in all.

    Raises:
      UserError: if the folder or an image cannot be read, the output cannot be written, or holds
        records made with other settings.
    """
    folder, output = os.path.abspath(os.path.expanduser(folder)), files.resolve(output, "output")
    content, class_names = plan(folder, shards, seed)
    count = sum(map(len, content.values()))
    options = {"input": folder, "images": count, "digest of names": _digest(content, folder)}
    options |= {"size": size, "shards": len(content), "seed": seed}
    manifest = _begin(output, options, class_names)
    todo = {name: examples for name, examples in content.items() if name not in manifest["shards"]}
    jobs = {name: (files.join(output, name), examples, size, skip_errors) for name, examples in todo.items()}
    try:
        with (
            tqdm(total=count, initial=count - sum(map(len, todo.values())), unit="image", disable=None) as bar,
            contextlib.closing(_write_shards(jobs, workers or os.cpu_count() or 1)) as written,
        ):
            for name, records, skipped in written:
                manifest["shards"][name] = records
                manifest["skipped"] += skipped
                _save(output, manifest)
                bar.update(len(todo[name]))
        manifest["complete"] = True
        _save(output, manifest)
        if manifest["skipped"]:
            files.write(files.join(output, SKIPPED_FILE), "".join(f"{line}\n" for line in manifest["skipped"]))
    except OSError as error:
        raise UserError(f"--output={output} cannot be written ({error.strerror}): free some space and run again.") from error
    return manifest["examples"]


def plan(folder: str, shards: int, seed: int) -> tuple[Plan, tuple[str, ...]]:
    """Returns which images go into which shard, and the class names.

    Raises:
      UserError: if the folder is missing, empty, or partly flat.
    """
    paths, labels, class_names = images.list_folder(folder)
    examples = list(zip(paths, labels, strict=True))
    random.Random(seed).shuffle(examples)
    shards = min(shards or -(-len(examples) // 1024), len(examples))
    names = [f"images-{number:05d}-of-{shards:05d}.tfrecord" for number in range(shards)]
    return {name: examples[number::shards] for number, name in enumerate(names)}, class_names


def _digest(content: Plan, folder: str) -> str:
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
    with files.writing("output", output):
        files.make_dirs(output)
        if files.exists(files.join(output, MANIFEST_FILE)):
            manifest |= _finished(output, options)
        for name in files.listing(output):
            if ".tfrecord.tmp-" in name:  # Half a shard, of a run that was killed.
                files.remove(files.join(output, name))
        _save(output, manifest)
        files.write(files.join(output, CLASSES_FILE), "".join(f"{name}\n" for name in class_names))
    return manifest


def _finished(output: str, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the shards that an earlier run with the same options finished, and the images it skipped."""
    path = files.join(output, MANIFEST_FILE)
    try:
        found = files.read_json(path)
        before = {key: found["options"].get(key) for key in options}
        shards = {name: int(count) for name, count in found["shards"].items() if files.exists(files.join(output, name))}
        skipped = list(found["skipped"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}): remove the directory and start again.") from error
    changed = [f"{key} {before[key]}, not {options[key]}" for key in options if before[key] != options[key]]
    if changed:
        raise UserError(f"--output={output} holds records made with other settings ({changed[0]}): choose another.")
    return {"shards": shards, "skipped": skipped}


def _save(output: str, manifest: dict[str, Any]) -> None:
    manifest["shards"] = dict(sorted(manifest["shards"].items()))
    manifest["skipped"] = sorted(set(manifest["skipped"]))
    manifest["examples"] = sum(manifest["shards"].values())
    files.write_json(files.join(output, MANIFEST_FILE), manifest, indent=2)


def _write_shards(jobs: Mapping[str, tuple], workers: int) -> Generator[tuple[str, int, list[str]], None, None]:
    """Calls `_write_shard` for these jobs in parallel processes; gives the name of each that is done, and what it returned."""
    if not jobs:
        return
    with _executor(min(workers, len(jobs))) as pool:
        futures = {pool.submit(_write_shard, *job): name for name, job in jobs.items()}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], *future.result()
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
    parent = multiprocessing.parent_process()
    assert parent

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _write_shard(path: str, examples: list[Example], size: int, skip_errors: bool) -> tuple[int, list[str]]:
    """Writes one shard, whole or not at all; returns how many records it holds, and a line for each image skipped."""
    skipped = []
    try:
        with files.whole(path) as temporary, tf.io.TFRecordWriter(temporary) as writer:
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
                    "image_raw": _bytes(pixels.tobytes()),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                    "filename": _bytes(os.fsencode(os.path.basename(file))),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True))
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"{path} cannot be written ({reason(error)}): see that there is space, and run again.") from error
    return len(examples) - len(skipped), skipped


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
