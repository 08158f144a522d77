"""A result: values, all that they depend on, and what a reader must know. Only equals compare."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Record", "by_protocol", "fingerprint"]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclasses.dataclass(frozen=True)
class Record:
    """What was measured of a generator, or of a set of images.

    Attributes:
      values: numbers by name.
      protocol: everything that the values depend on beside the weights; equal protocols compare.
      warnings: a sentence each.
      step: of the checkpoint; None: it was none.
      time: when it was measured, UTC, ISO 8601.
    """

    values: Mapping[str, float]
    protocol: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    step: int | None = None
    time: str = dataclasses.field(default_factory=_now)

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Reads a line of `metrics.jsonl`.

        Raises:
          ValueError: if it is no record.
        """
        found = json.loads(text)
        try:
            return cls(
                dict(found["values"]), dict(found["protocol"]), tuple(found["warnings"]), found["step"], found.get("time", "")
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no record: {error!r}") from error

    def to_json(self) -> str:
        """Returns the record as a line of `metrics.jsonl`, without the line's end."""
        keys = {"step": self.step, "time": self.time, "values": dict(self.values)}
        return json.dumps({**keys, "protocol": dict(self.protocol), "warnings": list(self.warnings)})

    def __str__(self) -> str:
        """Returns the record as people read it: the values, the protocol in a line, and the warnings."""
        p = self.protocol
        lines = [f"  {name:28} {value:12.5g}" for name, value in self.values.items()]
        measured = f"{p['num_samples']} samples against {p['real_images']} images of {p['dataset']}; classifier {p['classifier']}"
        drawn = [f"{p['batch_norm']} batch norm"] if "batch_norm" in p else []
        drawn += [f"truncation {p['truncation'] or 'none'}", f"seed {p['seed']}"] if "seed" in p else []
        lines.append(f"  ({'; '.join([measured + ', ' + p['resize'], *drawn])})")
        return "\n".join(lines + [f"  note: {warning}" for warning in self.warnings])


def by_protocol(records: Iterable[Record]) -> list[tuple[Mapping[str, Any], list[Record]]]:
    """Groups records by protocol, in the order in which protocols first occur: only equals compare."""
    groups: dict[str, tuple[Mapping[str, Any], list[Record]]] = {}
    for record in records:
        groups.setdefault(fingerprint(record.protocol), (record.protocol, []))[1].append(record)
    return list(groups.values())


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Returns a short name for these settings: equal ones have equal names."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
