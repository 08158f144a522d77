"""Training from data to the last step: the public `train`, and the loop that saves and calls hooks."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from sagan_tf import data, files
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.runs import strategies
from sagan_tf.runs.hooks import Hook, Training, standard_hooks
from sagan_tf.runs.run import Networks, Run
from sagan_tf.runs.signals import EXIT_INTERRUPTED, stop_on_signal
from sagan_tf.training import METRICS, Trainer

__all__ = ["train"]


def train(config: Config, hooks: Sequence[Hook] = ()) -> Run:
    """Trains until `config.train_steps`, from the newest checkpoint of `config.model_dir` if there is one.

    ```python
    run = sagan_tf.train(sagan_tf.Config(model_dir="runs/mine", image_size=32, attention_resolution=8))
    run = sagan_tf.train(run.config.replace(train_steps=2_000_000))  # Goes on; so does load_run("runs/mine").config.
    ```

    What happens is what `config` says, field by field, whether a field was given or left at its default. A run that was
    trained with other settings is therefore refused, and left as it is, unless they are settings that may change. It keeps
    its own images where `config` names none.

    Args:
      config: the settings; `model_dir` is the directory of the run.
      hooks: to call after those of every training, which are `standard_hooks`.

    Returns:
      The run, with the networks as they were trained.

    Raises:
      UserError: for anything the user can put right; checkpoints already written stay whole.
      SystemExit: with code 75, after SIGTERM or SIGINT, when the state has been saved, and after the loss of another worker.
    """
    # Open the data. What can be refused is refused before the networks are built.
    if not config.model_dir:
        raise UserError("--model_dir is missing: name the directory for checkpoints, summaries and samples.")
    config = Run.reconcile(config)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy, chief = strategies.make_strategy(config), strategies.is_chief(config)
    source = data.open_source(config)
    config = config.replace(num_classes=data.num_classes(source, config))
    hooks = [*standard_hooks(config, source, strategy), *hooks]
    schedule = _Schedule(config, hooks)

    with contextlib.ExitStack() as stack:
        if chief:
            with files.writing("model_dir", config.model_dir):
                stack.enter_context(files.held(config.model_dir))
        run = Run.create(config) if chief else Run(config.model_dir, config)

        # Build.
        training = Training(run, Trainer(config, strategy))

        # Resume.
        start = _resume(training, chief)
        logging.info(
            "%s %s: %s images, %d classes, %d replicas",
            f"Continuing at step {start} in" if start else "Starting in",
            run.directory,
            f"{source.num_examples:,}",
            config.num_classes,
            strategy.num_replicas_in_sync,
        )

        # Train.
        stack.enter_context(stop_on_signal(lambda: training.trainer.stop.assign(True)))
        stack.callback(run.checkpoints.wait)
        if chief:
            stack.callback(training.close)
            for hook in hooks:
                hook.open(training)
                stack.callback(hook.close)
        finished = _train_to_end(training, source, schedule, chief)

    # Close.
    trainer, step = training.trainer, int(training.trainer.step.numpy())
    if not finished:
        logging.info("Interrupted after step %d, which is saved; the same command continues there.", step)
        sys.exit(EXIT_INTERRUPTED)
    run.hold(Networks(trainer.sampled_generator, trainer.discriminator, step, trainer.ema_generator is not None))
    return run


def _resume(training: Training, chief: bool) -> int:
    """Goes back to the newest checkpoint, or saves the first; returns its step, on which all workers agree."""
    run, trainer = training.run, training.trainer
    restored = run.checkpoints.restore(trainer.state())
    start = int(trainer.step.numpy())
    if not strategies.agree(trainer.strategy, start):
        raise UserError(
            f"The workers find different checkpoints (this one, step {start}): --model_dir={run.directory} must be one "
            "directory that all of them see."
        )
    if restored is None and chief:
        run.checkpoints.save(0, trainer.state())
        run.checkpoints.wait()
    return start


def _train_to_end(training: Training, source: data.Source, schedule: "_Schedule", chief: bool) -> bool:
    """Trains to the last step; returns whether that was reached, or the training was interrupted before."""
    run, trainer = training.run, training.trainer
    batches, step = _batches(trainer, source), int(trainer.step.numpy())
    if chief:
        schedule.make_up(step)
    while step < run.config.train_steps:
        began = time.monotonic()
        metrics, stopped = _make_steps(training, batches, schedule.next(step) - step)
        step += len(metrics)
        if not np.isfinite(metrics[-1]).all():
            _roll_back(training, step, metrics[-1])
            batches, step = _batches(trainer, source), int(trainer.step.numpy())
            continue
        if chief and (stopped or schedule.saves(step)):
            run.checkpoints.save(step, trainer.state())
        training.seconds += time.monotonic() - began
        if chief:
            schedule.call(step, metrics, stopped)
        if stopped:
            return False
    return True


class _Schedule:
    """Decides what is due after which step; nothing else does.

    Args:
      config: of the run.
      hooks: to call, in this order.
    """

    def __init__(self, config: Config, hooks: Sequence[Hook]):
        if wrong := [hook for hook in hooks if hook.period < 0]:
            raise UserError(f"The hook {type(wrong[0]).__name__} has period={wrong[0].period}, which must be at least 0.")
        self._config = config
        self._hooks = hooks
        self._metrics: list[list[np.ndarray]] = [[] for _ in hooks]  # Since the last call of each.
        self._saved = time.monotonic()

    def next(self, step: int) -> int:
        """Returns the step after which to look up from the compiled loop: something may be due there."""
        config = self._config
        periods = [config.steps_per_loop, config.save_checkpoint_steps, *(hook.period for hook in self._hooks)]
        return min(config.train_steps, *((step // period + 1) * period for period in periods if period))

    def _due(self, step: int, period: int) -> bool:
        return step > 0 and (step == self._config.train_steps or (bool(period) and step % period == 0))

    def saves(self, step: int) -> bool:
        """Returns whether to save: by steps, by time, or for a hook."""
        config = self._config
        due = self._due(step, config.save_checkpoint_steps)
        due |= any(hook.of_checkpoint and self._due(step, hook.period) for hook in self._hooks)
        due |= bool(config.save_checkpoint_secs) and time.monotonic() - self._saved >= config.save_checkpoint_secs
        if due:
            self._saved = time.monotonic()
        return due

    def call(self, step: int, metrics: np.ndarray, stopped: bool) -> None:
        """Calls the hooks that are due, with the metrics of the steps just made and those kept for each."""
        for hook, since in zip(self._hooks, self._metrics, strict=True):
            since.append(metrics)
            if not self._due(step, hook.period) or (stopped and hook.of_checkpoint):
                continue
            if hook.of_checkpoint:
                hook.training.run.checkpoints.wait()
            hook(step, np.concatenate(since))
            since.clear()

    def make_up(self, step: int) -> None:
        """Calls the hooks that an interruption kept from being called at the step where the training goes on."""
        for hook in self._hooks:
            if self._due(step, hook.period) and hook.missed(step):
                hook(step, np.zeros([0, len(METRICS)], np.float32))


def _batches(trainer: Trainer, source: data.Source) -> Iterator[dict[str, tf.Tensor]]:
    step, rollbacks = int(trainer.step.numpy()), int(trainer.rollbacks.numpy())
    return data.train_iterator(source, trainer.config, trainer.strategy, step, rollbacks)


def _make_steps(training: Training, batches: Iterator, count: int) -> tuple[np.ndarray, bool]:
    """Trains for some steps; returns their metrics, and whether the training was told to stop."""
    try:
        metrics, stopped = training.trainer.train(batches, tf.constant(count))
        return metrics.numpy(), bool(stopped.numpy())
    except tf.errors.OpError as error:
        if strategies.is_lost_worker(training.trainer.strategy, error):
            training.run.checkpoints.wait()
            last = training.run.steps[-1]
            logging.error("Another worker is gone. Start all of them again: they continue at step %d.", last)
            sys.exit(EXIT_INTERRUPTED)
        raise data.user_error(error) or error from error


def _roll_back(training: Training, step: int, metrics: np.ndarray) -> None:
    """Goes back to the last checkpoint after a step that was not finite, or ends the run."""
    trainer, checkpoints, config = training.trainer, training.run.checkpoints, training.run.config
    checkpoints.wait()
    strategies.agree(trainer.strategy, step)  # Only the chief writes: the others wait for it here.
    culprits = ", ".join(f"{name} is {value}" for name, value in zip(METRICS, metrics, strict=True) if not np.isfinite(value))
    variables = [name for name, variable in trainer.state().items() if not np.isfinite(np.array(variable)).all()]
    if variables:
        culprits += f"; in {variables[0]}" + (f" and {len(variables) - 1} more variables" if len(variables) > 1 else "")
    last, rollbacks = training.run.steps[-1], int(trainer.rollbacks.numpy()) + 1
    if config.on_nan == "stop" or rollbacks > config.max_rollbacks:
        remedy = "--on_nan=rollback" if config.on_nan == "stop" else f"--max_rollbacks above {config.max_rollbacks}"
        raise UserError(
            f"Step {step} is not finite: {culprits}. The checkpoint of step {last} is the last good one; lower the "
            f"learning rates, or resume with {remedy} to go on from it with other data."
        )
    checkpoints.restore(trainer.state())
    trainer.rollbacks.assign(rollbacks)
    logging.warning("Step %d is not finite: %s. Rollback %d, to step %d.", step, culprits, rollbacks, last)
