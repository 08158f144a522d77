"""`sagan-train`: trains a SAGAN, or continues a run where it stopped."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from sagan_tf import config as config_lib
from sagan_tf import data, pixels, sampling
from sagan_tf.commands import cli
from sagan_tf.config import Config
from sagan_tf.data import twins
from sagan_tf.errors import UserError
from sagan_tf.files import writing
from sagan_tf.metrics import classifiers
from sagan_tf.networks import spectral_norms
from sagan_tf.runs import diagnosis, distribution, history
from sagan_tf.runs.checkpoints import Checkpoints, write_file, written_or_told
from sagan_tf.runs.run import Run
from sagan_tf.training import METRICS, Trainer

# What sysexits.h calls EX_TEMPFAIL: launchers that retry on it continue the run.
EXIT_INTERRUPTED = 75
AGREEMENT_SAMPLES = 512


def train(config: Config) -> None:
    """Trains until `config.train_steps`, from the newest checkpoint of `config.model_dir` if there is one.

    Raises:
      UserError: for anything the user can put right; checkpoints already written stay whole.
      SystemExit: with code 75, after SIGTERM or SIGINT, when the state has been saved, and after the loss of another worker.
    """
    # Everything that can be refused is refused before the networks are built.
    if not config.model_dir:
        raise UserError("--model_dir is missing: name the directory for checkpoints, summaries and samples.")
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = distribution.make_strategy(config)
    chief = distribution.is_chief(strategy)
    source = data.open_source(config)
    config = config.replace(num_classes=data.num_classes(source, config))
    classifier = None
    if config.eval_every_steps:
        with strategy.scope():
            classifier = classifiers.of(config)
    if chief:
        _prepare_model_dir(config)

    trainer = Trainer(config, strategy)
    checkpoints = Checkpoints(config.model_dir, config.keep_checkpoints, config.keep_checkpoint_every_steps)
    restored = checkpoints.restore(trainer.state())
    start = int(trainer.step.numpy())
    if not distribution.agree(strategy, start):
        raise UserError(
            f"The workers find different checkpoints (this one, step {start}): --model_dir={config.model_dir} must be one "
            "directory that all of them see."
        )
    if restored is None and chief:
        checkpoints.save(0, trainer.state())
        checkpoints.wait()
    logging.info(
        "%s %s: %s images, %d classes, %d replicas",
        f"Continuing at step {start} in" if start else "Starting in",
        config.model_dir,
        f"{source.num_examples:,}",
        config.num_classes,
        strategy.num_replicas_in_sync,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_stop_on_signal(trainer.stop))
        stack.callback(checkpoints.wait)
        reporter = stack.enter_context(Reporter(trainer, start, classifier)) if chief else None
        interrupted = _train_to_end(trainer, source, checkpoints, reporter)
    if interrupted:
        logging.info("Interrupted after step %d, which is saved; the same command continues there.", trainer.step.numpy())
        sys.exit(EXIT_INTERRUPTED)
    if chief:
        print(_closing_words(trainer, reporter.evaluated))


def _prepare_model_dir(config: Config) -> None:
    with writing("model_dir", config.model_dir):
        os.makedirs(config.model_dir, exist_ok=True)
        write_file(os.path.join(config.model_dir, config_lib.CONFIG_FILE), config.to_json())


@contextlib.contextmanager
def _stop_on_signal(stop: tf.Variable) -> Iterator[None]:
    """Sets `stop` on SIGTERM or SIGINT, even while Python waits for the compiled loop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    before_fd = signal.set_wakeup_fd(sender)

    def listen():
        if os.read(receiver, 1):
            stop.assign(True)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(sender)  # Ends the listener.
        listener.join()
        os.close(receiver)


def batches(trainer: Trainer, source: data.Source) -> Iterator:
    """Returns the iterator over distributed batches that starts at the trainer's step."""
    config, strategy = trainer.config, trainer.strategy
    per_replica = config.batch_size // strategy.num_replicas_in_sync
    start_batch = int(trainer.step.numpy()) * config.d_step
    data_seed = config.seed + int(trainer.rollbacks.numpy())

    def dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        shard = (context.input_pipeline_id, context.num_input_pipelines)
        return data.train_dataset(source, config, start_batch, shard=shard, data_seed=data_seed).rebatch(per_replica)

    return iter(strategy.distribute_datasets_from_function(dataset))


def _train_to_end(trainer: Trainer, source: data.Source, checkpoints: Checkpoints, reporter: "Reporter | None") -> bool:
    """Trains to the last step; returns True if it was interrupted before."""
    config = trainer.config
    iterator = batches(trainer, source)
    saved_at, saved_step = time.monotonic(), int(trainer.step.numpy())
    step = saved_step
    if reporter and _evaluates(config, step) and step not in reporter.measured(source):
        reporter.evaluate(step, source)  # Killed or stopped between a checkpoint and its evaluation.
    while step < config.train_steps:
        # As many steps as the loop takes, but no further than the next thing to do.
        periods = [config.save_summaries_steps, config.save_samples_steps, config.save_checkpoint_steps]
        periods.append(config.eval_every_steps)
        ends = [config.train_steps, step + config.steps_per_loop] + [(step // p + 1) * p for p in periods if p]
        try:
            metrics, stopped = (result.numpy() for result in trainer.train(iterator, tf.constant(min(ends) - step)))
        except tf.errors.OpError as error:
            if distribution.is_lost_worker(trainer.strategy, error):
                checkpoints.wait()
                last = checkpoints.steps()[-1]
                logging.error("Another worker is gone. Start all of them again: they continue at step %d.", last)
                sys.exit(EXIT_INTERRUPTED)
            raise data.user_error(error) or error from error
        if not np.isfinite(metrics[-1]).all():
            _recover(trainer, checkpoints, step + len(metrics), metrics[-1])
            iterator = batches(trainer, source)
            step = int(trainer.step.numpy())
            continue
        step += len(metrics)
        if reporter:
            reporter.add(step, metrics)

        stopping = step == config.train_steps or stopped
        due = config.save_checkpoint_steps and step % config.save_checkpoint_steps == 0
        evaluating = _evaluates(config, step)
        due |= evaluating
        due |= config.save_checkpoint_secs and time.monotonic() - saved_at >= config.save_checkpoint_secs
        if (due or stopping) and step > saved_step and reporter:
            checkpoints.save(step, trainer.state())
            saved_at, saved_step = time.monotonic(), step
        if evaluating and reporter and not stopped:
            checkpoints.wait()
            reporter.evaluate(step, source)
        if stopped:
            return True
    return False


def _evaluates(config: Config, step: int) -> bool:
    """Returns whether a training evaluates itself after this step."""
    return bool(config.eval_every_steps and step and (step % config.eval_every_steps == 0 or step == config.train_steps))


def _recover(trainer: Trainer, checkpoints: Checkpoints, step: int, metrics: np.ndarray) -> None:
    """Goes back to the last checkpoint after a step that was not finite, or ends the run."""
    config = trainer.config
    checkpoints.wait()
    distribution.agree(trainer.strategy, step)  # Only the chief writes: the others wait for it here.
    culprits = ", ".join(f"{name} is {value}" for name, value in zip(METRICS, metrics, strict=True) if not np.isfinite(value))
    variables = [name for name, variable in trainer.state().items() if not np.isfinite(np.array(variable)).all()]
    if variables:
        culprits += f"; in {variables[0]}" + (f" and {len(variables) - 1} more variables" if len(variables) > 1 else "")
    last = checkpoints.steps()[-1]
    rollbacks = int(trainer.rollbacks.numpy()) + 1
    if config.on_nan == "stop" or rollbacks > config.max_rollbacks:
        remedy = "--on_nan=rollback" if config.on_nan == "stop" else f"--max_rollbacks above {config.max_rollbacks}"
        raise UserError(
            f"Step {step} is not finite: {culprits}. The checkpoint of step {last} is the last good one; lower the "
            f"learning rates, or resume with {remedy} to go on from it with other data."
        )
    checkpoints.restore(trainer.state())
    trainer.rollbacks.assign(rollbacks)
    logging.warning("Step %d is not finite: %s. Rollback %d, to step %d.", step, culprits, rollbacks, last)


class Reporter:
    """Tells people how a run goes: progress bar or log lines, TensorBoard, sample grids.

    Args:
      trainer: what is trained.
      start: the step at which this process begins.
      classifier: what evaluations see images with; None: there are none.
    """

    def __init__(self, trainer: Trainer, start: int, classifier: classifiers.Classifier | None = None):
        self.trainer = trainer
        self.config = trainer.config
        self._bar = tqdm(
            total=self.config.train_steps, initial=start, unit="step", disable=None, smoothing=0.05, dynamic_ncols=True
        )
        self._writer = tf.summary.create_file_writer(os.path.join(self.config.model_dir, "summaries"))
        self._classifier = classifier
        self._diagnosis = diagnosis.Diagnosis()
        self.evaluated = ""
        self._history: list[np.ndarray] = []
        self._since = time.monotonic()
        self._sigmas = tf.function(lambda: [spectral_norms(model) for model in (trainer.generator, trainer.discriminator)])

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
        with written_or_told("The last summaries cannot be written"):
            self._writer.close()

    def add(self, step: int, metrics: np.ndarray) -> None:
        """Takes the metrics of the steps just done, `[steps, len(METRICS)]`, and reports what is due at `step`."""
        self._bar.update(len(metrics))
        self._history.append(metrics)
        if step % self.config.save_summaries_steps == 0 or step == self.config.train_steps:
            self._summarize(step)
        if step % self.config.save_samples_steps == 0 or step == self.config.train_steps:
            self._sample(step)

    def _summarize(self, step: int) -> None:
        history = np.concatenate(self._history)
        rate = len(history) * self.config.batch_size / (time.monotonic() - self._since)
        means = dict(zip(METRICS, history.mean(axis=0), strict=True))
        gammas, sigmas = attention_gammas(self.trainer), self._sigmas()
        loss_d = means["discriminator_loss_real"] + means["discriminator_loss_fake"]
        shown = {"G": f"{means['generator_loss']:.3f}", "D": f"{loss_d:.3f}", "images/s": f"{rate:.1f}"}
        shown |= {f"gamma_{name[0].upper()}": f"{value:.3f}" for name, value in gammas.items()}
        self._bar.set_postfix(shown)
        if self._bar.disable:
            logging.info("step %d: %s", step, ", ".join(f"{name} {value}" for name, value in shown.items()))
        self._warn(self._diagnosis.of_metrics(step, means, gammas))
        with written_or_told(f"Summaries of step {step} cannot be written"), self._writer.as_default(step):
            for name, value in means.items():
                tf.summary.scalar(name.replace("_", "/", 1) if name.startswith("logits") else f"training/{name}", value)
            for name, value in gammas.items():
                tf.summary.scalar(f"gamma/{name}", value)
            for network, values in zip(("generator", "discriminator"), sigmas, strict=True):
                for layer, value in values.items():
                    tf.summary.scalar(f"sigma/{network}/{layer}", value)
            tf.summary.scalar("learning_rate/generator", self.config.generator_learning_rate)
            tf.summary.scalar("learning_rate/discriminator", self.config.discriminator_learning_rate)
            tf.summary.scalar("images_per_second", rate)
            self._writer.flush()
        self._history, self._since = [], time.monotonic()

    def _warn(self, sentences: list[str]) -> None:
        for sentence in sentences:
            logging.warning("%s", sentence)

    def _evaluator(self, source: data.Source):
        from sagan_tf.metrics.evaluator import Evaluator, Protocol

        protocol, cache = Protocol(num_samples=self.config.num_samples), Run(self.config.model_dir, self.config).statistics_dir
        return Evaluator(source, self._classifier, protocol, cache, self.trainer.strategy, self.config.dataset)

    def _sampler(self, step: int) -> sampling.Sampler:
        return sampling.sampler(self.trainer.sampler, self.config, step=step, use_ema=self.trainer.ema_generator is not None)

    def measured(self, source: data.Source) -> set[int | None]:
        """Returns the steps that this run has evaluated before."""
        from sagan_tf.runs import evaluation

        protocol = self._evaluator(source).protocol_of(self._sampler(0))
        return evaluation.measured(Run(self.config.model_dir, self.config), protocol)

    def evaluate(self, step: int, source: data.Source) -> None:
        """Measures the generator as `sagan-evaluate` does, and keeps the checkpoint if its FID is the best."""
        began = time.monotonic()
        record = self._evaluator(source).measure(self._sampler(step))
        run = Run(self.config.model_dir, self.config)
        run.add(record)
        self.evaluated = f"Step {step}:\n{record}"
        logging.info("%s", self.evaluated)
        fids = [other.values["fid"] for other in run.records if other.protocol == record.protocol]
        self._warn(self._diagnosis.of_fids(step, fids))
        self._since += time.monotonic() - began  # Not training time.

    def _sample(self, step: int) -> None:
        began = time.monotonic()
        z, labels = sampling.grid_inputs(self.config.z_dim, self.config.num_classes, self.config.seed)
        images = sampling.generate(self.trainer.sampler, z, labels)
        sheet = pixels.grid(images, sampling.GRID_COLUMNS)
        deviation = diagnosis.deviation_over_z(images, labels.numpy())
        scores = {"samples/deviation_over_z": deviation}
        if self.config.dataset == "twins":
            scores["twins/agreement"] = agreement(self.trainer)
            logging.info("step %d: agreement of the twins %.3f", step, scores["twins/agreement"])
        with written_or_told(f"Samples of step {step} cannot be written"):
            pixels.save_png(os.path.join(history.samples_dir(self.config.model_dir), f"{step:08d}.png"), sheet)
        with written_or_told(f"Summaries of the samples of step {step} cannot be written"), self._writer.as_default(step):
            tf.summary.image("samples", sheet[None])
            for name, score in scores.items():
                tf.summary.scalar(name, score)
            self._writer.flush()  # A checkpoint may follow, after which this step is not made again.
        self._warn(self._diagnosis.of_samples(step, deviation))
        self._since += time.monotonic() - began  # Not training time.


def attention_gammas(trainer: Trainer) -> dict[str, float]:
    """Returns gamma of each network's attention layer, by network; empty without attention."""
    networks = (trainer.generator, trainer.discriminator)
    return {
        model.name: float(variable.numpy())
        for model in networks
        for variable in model.trainable_variables
        if variable.path == "attention/gamma"
    }


def agreement(trainer: Trainer) -> float:
    """Returns the agreement score of the generator's samples, for a run on the dataset twins."""
    config = trainer.config
    z = tf.random.stateless_normal([AGREEMENT_SAMPLES, config.z_dim], [config.seed, -2])
    labels = np.arange(AGREEMENT_SAMPLES, dtype=np.int32) % max(config.num_classes, 1)
    return twins.agreement(sampling.generate(trainer.sampler, z, labels), labels, config.twins_cells)


def _closing_words(trainer: Trainer, evaluated: str) -> str:
    config = trainer.config
    lines = [
        f"Trained to step {int(trainer.step.numpy())}.",
        f"  checkpoints   {os.path.join(config.model_dir, 'checkpoints')}",
        f"  sample grids  {history.samples_dir(config.model_dir)}",
        f"  TensorBoard   tensorboard --logdir={config.model_dir}",
        f"  more samples  sagan-sample --model_dir={config.model_dir} --output=samples.png",
        f"  SavedModel    sagan-export --model_dir={config.model_dir} --export_dir=OUT",
    ]
    if config.dataset == "twins":
        lines.append(f"Agreement of the twins (1: alike in every image, as in the data; 0: by chance): {agreement(trainer):.3f}")
    if evaluated:
        lines.append(evaluated)
    return "\n".join(lines)


def main() -> None:
    """Trains a self-attention GAN; the same command continues an interrupted run.

    sagan-train --flagfile=flags/quickstart.cfg --model_dir=/tmp/quickstart
    sagan-train --dataset=folder:my_images --image_size=64 --model_dir=/tmp/mine
    """
    train(cli.config_from_flags())


def run() -> None:
    """The console script."""
    cli.run(main)


if __name__ == "__main__":
    run()
