"""Measuring the checkpoints of a run: one of them, or each as it comes, and the results kept with the run."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import keras

from sagan_tf import data, sampling
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.metrics import classifiers
from sagan_tf.metrics.evaluator import Evaluator, Protocol
from sagan_tf.metrics.record import Record
from sagan_tf.runs import strategies
from sagan_tf.runs.run import Run
from sagan_tf.sampling import Draws

__all__ = ["evaluate_run", "measured", "prepare", "watch", "watch_run"]

WATCH_SECONDS = 5


def prepare(config: Config, protocol: Protocol) -> tuple[Run, Evaluator]:
    """Returns the run of these settings, and its evaluator: by its dataset, its classifier and all devices of this machine.

    Args:
      config: of the run; one trained on several machines is evaluated on this one.
      protocol: how to measure.

    Raises:
      UserError: if the dataset or the classifier cannot be read.
    """
    run = Run(config.model_dir, config)
    strategy = strategies.replicas(config.replace(distribution="auto") if config.distribution == "multi_worker" else config)
    with strategy.scope():
        classifier = classifiers.of(config)
    return run, Evaluator(data.open_source(config), classifier, protocol, run.statistics_dir, strategy, config.dataset)


def evaluate_run(
    run: Run, evaluator: Evaluator, draws: Draws, step: int | None = None, use_ema: bool | None = None
) -> tuple[Record, bool]:
    """Measures a checkpoint, and adds the record to its run.

    Args:
      run: that it is of.
      evaluator: measures it.
      draws: how samples are drawn.
      step: of the checkpoint; None: the newest.
      use_ema: take the averaged generator; None: if the run has one.

    Returns:
      The record, and whether its FID is the lowest so far under its protocol.

    Raises:
      UserError: if there is no such checkpoint, or it cannot be measured.
    """
    with evaluator.strategy.scope():
        generator, _, step, use_ema = run.networks(step, use_ema)
        sampler = sampling.sampler(generator, run.config, draws, step, use_ema=use_ema)
    progress = run.intra_fid_file(step, _digest(generator)) if evaluator.protocol.intra_fid_samples else ""
    record = evaluator.measure(sampler, progress)
    return record, run.add(record)


def measured(run: Run, protocol: Mapping[str, Any]) -> set[int | None]:
    """Returns the steps of a run that were measured under this very protocol (see `Evaluator.protocol_of`)."""
    return {record.step for record in run.records if record.protocol == protocol}


def watch_run(run: Run, evaluator: Evaluator, draws: Draws, use_ema: bool | None = None, patience: int = 0) -> Iterator[str]:
    """Measures new checkpoints of a running training as they appear, until that of the last step.

    Steps that were measured before, in the same way, are left out.

    Args:
      run: that a training may be adding to.
      evaluator: measures its checkpoints.
      draws: how samples are drawn.
      use_ema: take the averaged generator; None: if the run has one.
      patience: so many results in a row that are not the best end it too; 0: none do.

    Yields:
      What a person should read: each result, and why it ended.

    Raises:
      UserError: if the run cannot be written, or a checkpoint cannot be measured.
    """
    facts = dataclasses.asdict(draws) | {"use_ema": run.uses_ema(use_ema)}
    done = measured(run, evaluator.protocol_of(facts))
    return watch(run, lambda step: evaluate_run(run, evaluator, draws, step, use_ema), done, patience)


def watch(
    run: Run, evaluate: Callable[[int], tuple[Record, bool]], done: Collection[int | None] = (), patience: int = 0
) -> Iterator[str]:
    """Does what `watch_run` does, by any function.

    Args:
      run: that a training may be adding to.
      evaluate: takes the step of a checkpoint; returns its record, and whether it is the best so far.
      done: steps that need no evaluation.
      patience: as there.
    """
    seen, worse = set(done), 0
    while run.config.train_steps not in seen:
        new = [step for step in run.steps if step and step not in seen]
        if not new:
            time.sleep(WATCH_SECONDS)
            continue
        step = new[-1]  # The newest: an evaluation that cannot keep up passes over the others.
        seen |= set(new)
        try:
            run.pin_evaluated(step)  # The training shall not remove it meanwhile.
        except OSError as error:
            raise UserError(
                f"{run.checkpoints.directory} cannot be written ({error.strerror}), where --watch says which checkpoint it is "
                "at: evaluate single ones with --checkpoint_step."
            ) from error
        record, best = evaluate(step)
        yield f"Step {step}{', the lowest FID so far' if best else ''}:\n{record}"
        worse = 0 if best else worse + 1
        if patience and worse >= patience:
            yield f"No better FID in {worse} evaluations: stopping."
            return


def _digest(generator: keras.Model) -> str:
    digest = hashlib.sha256()
    for value in generator.get_weights():
        digest.update(value.tobytes())
    return digest.hexdigest()[:8]
