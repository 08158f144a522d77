"""What a run has recorded so far: the evaluations in `metrics.jsonl`, the scalars of its TensorBoard files, its sample grids."""

import errno
import json
import os
import re
import time
from collections.abc import Sequence

import tensorflow as tf

from sagan_tf.errors import UserError
from sagan_tf.runs.scalars import Curve, curve, read_scalars  # noqa: F401

METRICS_FILE = "metrics.jsonl"


def append(directory: str, step: int, record: dict) -> None:
    """Adds a record to `metrics.jsonl` of a run, whole or not at all, and its values to the run's TensorBoard.

    Raises:
      OSError, tf.errors.OpError: if one of them cannot be written.
    """
    stamped = {"step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **record}
    line = (json.dumps(stamped) + "\n").encode()
    with open(os.path.join(directory, METRICS_FILE), "ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise
    writer = tf.summary.create_file_writer(os.path.join(directory, "summaries"), filename_suffix=".metrics")
    with writer.as_default(step):
        for name, value in record["values"].items():
            tf.summary.scalar(f"metrics/{name}", value)
    writer.close()


def read(directory: str) -> list[dict]:
    """Returns the records of a run, oldest first; none if it has not been evaluated.

    Raises:
      UserError: if a line is no record.
    """
    path = os.path.join(directory, METRICS_FILE)
    if not os.path.exists(path):
        return []
    try:
        with open(path, encoding="utf-8") as file:
            records = [json.loads(line) for line in file if line.strip()]
        _ = [record[name] for record in records for name in ("step", "values", "protocol", "warnings")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove the damaged line.") from error
    return records


def by_protocol(records: Sequence[dict]) -> list[tuple[dict, list[dict]]]:
    """Groups the records of a run by protocol, in the order in which protocols first occur: only equals compare."""
    groups: dict[str, tuple[dict, list[dict]]] = {}
    for record in records:
        groups.setdefault(json.dumps(record["protocol"], sort_keys=True), (record["protocol"], []))[1].append(record)
    return list(groups.values())


def samples_dir(directory: str) -> str:
    """Returns the directory of a run's sample grids, `STEP.png` each."""
    return os.path.join(directory, "samples")


def last_grid(directory: str) -> tuple[int, str] | None:
    """Returns step and path of a run's last sample grid; None if there is none."""
    samples = samples_dir(directory)
    names = [name for name in (os.listdir(samples) if os.path.isdir(samples) else []) if re.fullmatch(r"\d+\.png", name)]
    return max(((int(name[:-4]), os.path.join(samples, name)) for name in names), default=None)
