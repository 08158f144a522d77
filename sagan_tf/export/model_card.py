"""The model card of an export: what the generator is, how to use it, how good it is known to be, and what it is not."""

import math
from collections.abc import Sequence
from typing import Any

from sagan_tf import architecture, templates
from sagan_tf.config import Config, reproduce_command, show
from sagan_tf.metrics.record import by_protocol
from sagan_tf.runs.run import Networks, Run

__all__ = ["text"]


def text(run: Run, trained: Networks, formats: Sequence[str] = ("saved_model",)) -> str:
    """Returns the model card of a generator, in Markdown.

    Args:
      run: whose records of this step and this kind of generator are shown, the newest of each protocol.
      trained: the generator, as `run.networks` returns it.
      formats: what it is exported as (see `formats.FORMATS`).

    Raises:
      UserError: if the run's records cannot be read.
    """
    config, generator = run.config, trained.generator
    measured = [
        record
        for record in run.records
        if record.step == trained.step and bool(record.protocol.get("use_ema", trained.use_ema)) == trained.use_ema
    ]
    kind, _, source = config.dataset.partition(":")
    attentive = config.attention_resolution and config.attention_block == "attention"
    return templates.render(
        "model_card.md",
        cell=_cell,
        command=reproduce_command(config, f"{run.name}-again"),
        config=config,
        default=Config(),
        formats=formats,
        gamma=float(generator.get_layer("attention").gamma) if attentive else None,
        kind=kind,
        labels=", ".join(str(number % max(config.num_classes, 1)) for number in range(4)),
        # The first is that of version 0.1.
        own_classifier=any(record.protocol.get("classifier") in ("embedded", "faces") for record in measured),
        parameters=sum(math.prod(weight.shape) for weight in generator.trainable_variables),
        records=[group[-1] for _, group in by_protocol(measured)],
        source=source,
        table=architecture.GENERATOR[config.image_size],
        trained=trained,
    )


def _cell(value: Any) -> str:
    """Returns a value as code in a cell of a table, in which a bar would begin the next."""
    return f"`{show(value)}`".replace("|", "\\|")
