"""Hooks: what happens around a training, each by its own period. Users may add their own."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from sagan_tf import data, files, pixels, sampling
from sagan_tf.config import Config
from sagan_tf.data import faces
from sagan_tf.errors import UserError
from sagan_tf.networks import spectral_norms
from sagan_tf.runs.diagnosis import HEALTHY_DIVERSITY, Diagnosis, deviation_over_z
from sagan_tf.runs.run import Run
from sagan_tf.training import METRICS, Trainer

__all__ = ["Evaluations", "Hook", "Progress", "SampleGrids", "Summaries", "Training", "agreement", "standard_hooks"]

_AGREEMENT_SAMPLES = 512
# With which the samples' variety is compared. At 256 px they are 400 MB, and are held twice for a moment.
_REAL_IMAGES = 512


@dataclasses.dataclass
class Training:
    """A training under way, as hooks see it.

    Attributes:
      run: where it is kept.
      trainer: its networks.
      seconds: that this process has trained and saved; hooks do not count.
      diagnosis: what has been told of signs of trouble.
    """

    run: Run
    trainer: Trainer
    seconds: float = 0.0
    diagnosis: Diagnosis = dataclasses.field(default_factory=Diagnosis)

    @functools.cached_property
    def _writer(self) -> tf.summary.SummaryWriter:
        return self.run.summary_writer()

    def summarize(self, step: int, what: str, scalars: Mapping[str, float], images: Mapping[str, np.ndarray] | None = None) -> None:
        """Writes to the run's TensorBoard, or warns that it cannot.

        Args:
          step: that they are of.
          what: is written, for the warning.
          scalars: by tag.
          images: uint8 `[H, W, 3]`, by tag.
        """
        with files.told(f"{what} of step {step} cannot be written", tf.errors.OpError), self._writer.as_default(step):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)
            for name, image in (images or {}).items():
                tf.summary.image(name, image[None])
            self._writer.flush()  # The step may be saved already, and is then not made again.

    def close(self) -> None:
        """Closes the TensorBoard file."""
        with files.told("The last summaries cannot be written", tf.errors.OpError):
            self._writer.close()


class Hook:
    """Something to do every so many steps of a training, and after its last one.

    ```python
    class PrintGamma(Hook):
        period = 100

        def __call__(self, step, metrics):
            gamma = self.training.trainer.generator.get_layer("attention").gamma
            print(step, float(gamma.numpy()), metrics[:, METRICS.index("generator_loss")].mean())

    sagan_tf.train(config, hooks=[PrintGamma()])
    ```

    A step that is due to be saved is saved before its hooks are called. With several processes, the chief alone calls them;
    periods also say how many steps are made at a time, so all of them must be given the same hooks.

    Args:
      period: steps between calls, in place of the class's own; 0: after the last step alone.

    Attributes:
      period: steps between calls.
      of_checkpoint: whether it is about the checkpoint of the step, which is then on the disk before the call. A training
        that is interrupted leaves the call out, and makes up for it when it goes on.
      training: the training under way; there from `open` on.
    """

    period: int = 0
    of_checkpoint: bool = False
    training: Training

    def __init__(self, period: int | None = None):
        self.period = self.period if period is None else period

    def open(self, training: Training) -> None:
        """Takes the training that is about to begin."""
        self.training = training

    def __call__(self, step: int, metrics: np.ndarray) -> None:
        """Does what is due.

        Args:
          step: that has been made.
          metrics: `training.METRICS` of the steps made since the last call, float32 `[n, len(METRICS)]`.
        """
        raise NotImplementedError

    def missed(self, step: int) -> bool:
        """Returns whether a call is to be made up for, at the step where a training goes on."""
        return False

    def close(self) -> None:
        """Ends its work, however the training ended."""


def standard_hooks(config: Config, source: data.Source, strategy: tf.distribute.Strategy) -> list[Hook]:
    """Returns the hooks of every training, in the order of their calls (see `Evaluations` for what is refused)."""
    progress = Progress(config.steps_per_loop)
    grids = SampleGrids(config.save_samples_steps, progress, source)
    hooks: list[Hook] = [progress, Summaries(config.save_summaries_steps, progress), grids]
    return hooks + ([Evaluations(config, source, strategy)] if config.eval_every_steps else [])


class Progress(Hook):
    """A progress bar, or lines in the log where there is no terminal."""

    def open(self, training: Training) -> None:
        super().open(training)
        done, whole = int(training.trainer.step.numpy()), training.run.config.train_steps
        self._shown: dict[str, str] = {}
        self._bar = tqdm(total=whole, initial=done, unit="step", disable=None, smoothing=0.05, dynamic_ncols=True)

    def __call__(self, step: int, metrics: np.ndarray) -> None:
        self._bar.update(step - self._bar.n)

    def show(self, step: int, values: Mapping[str, str]) -> None:
        """Shows values, by name, in the log, or beside the bar together with others."""
        self._bar.update(step - self._bar.n)
        self._shown |= values
        self._bar.set_postfix(self._shown)
        if self._bar.disable:
            logging.info("step %d: %s", step, ", ".join(f"{name} {value}" for name, value in values.items()))

    def close(self) -> None:
        self._bar.close()


class Summaries(Hook):
    """Losses, logits, norms, gammas, sigmas and speed, for TensorBoard and the progress bar.

    Args:
      period: steps between them.
      progress: what shows the most important ones.
    """

    def __init__(self, period: int, progress: Progress):
        super().__init__(period)
        self._progress, self._seconds = progress, 0.0

    def open(self, training: Training) -> None:
        super().open(training)
        self._models = (training.trainer.generator, training.trainer.discriminator)
        self._sigmas = tf.function(lambda: {model.name: spectral_norms(model) for model in self._models})

    def __call__(self, step: int, metrics: np.ndarray) -> None:
        config, seconds = self.training.run.config, self.training.seconds
        rate = len(metrics) * config.batch_size / (seconds - self._seconds)
        self._seconds = seconds
        means = {name: float(mean) for name, mean in zip(METRICS, metrics.mean(axis=0), strict=True)}
        gammas = {
            model.name: float(variable.numpy())
            for model in self._models
            for variable in model.trainable_variables
            if variable.path == "attention/gamma"
        }
        loss = means["discriminator_loss_real"] + means["discriminator_loss_fake"]
        shown = {"G": f"{means['generator_loss']:.3f}", "D": f"{loss:.3f}", "images/s": f"{rate:.1f}"}
        self._progress.show(step, shown | {f"gamma_{name[0].upper()}": f"{value:.3f}" for name, value in gammas.items()})
        _warn(self.training.diagnosis.of_metrics(step, means, gammas))
        scalars = {name.replace("_", "/", 1) if name.startswith("logits") else f"training/{name}": means[name] for name in means}
        scalars |= {f"gamma/{name}": value for name, value in gammas.items()}
        scalars |= {f"sigma/{name}/{layer}": value for name, sigmas in self._sigmas().items() for layer, value in sigmas.items()}
        scalars |= {"learning_rate/generator": config.generator_learning_rate, "images_per_second": rate}
        scalars |= {"learning_rate/discriminator": config.discriminator_learning_rate}
        self.training.summarize(step, "Summaries", scalars)


class SampleGrids(Hook):
    """Samples of fixed z, as a picture and in TensorBoard, and how much they differ.

    Diversity is `deviation_over_z` of the samples, divided by that of real images: 1 is as varied as the data, 0 one image.

    Args:
      period: steps between them.
      progress: what shows diversity.
      source: the real images.

    Raises:
      UserError: when called, with `--on_collapse=stop`, on the second grid in a row whose samples are nearly alike.
    """

    def __init__(self, period: int, progress: Progress, source: data.Source):
        super().__init__(period)
        self._progress, self._source = progress, source

    @functools.cached_property
    def _real_deviation(self) -> float:
        examples = data.some_examples(self._source, self.training.run.config, _REAL_IMAGES)
        return deviation_over_z(examples["images"].numpy(), examples["labels"].numpy())

    def missed(self, step: int) -> bool:
        last = self.training.run.last_grid()
        return last is None or last[0] < step

    def __call__(self, step: int, metrics: np.ndarray) -> None:
        run, generator = self.training.run, self.training.trainer.sampled_generator
        z, labels = sampling.grid_inputs(run.config.z_dim, run.config.num_classes, run.config.seed)
        images = sampling.generate(generator, z, labels)
        sheet = pixels.grid(images, sampling.GRID_COLUMNS)
        deviation = deviation_over_z(images, labels.numpy())
        diversity = deviation / self._real_deviation if self._real_deviation else float("nan")
        scores = {"samples/deviation_over_z": deviation, "samples/diversity": diversity}
        shown = {"diversity": f"{diversity:.2f}"}
        if run.config.dataset == "faces":
            score = scores["faces/agreement"] = agreement(generator, run.config)
            shown["agreement of the eyes"] = f"{score:.3f}"
        self._progress.show(step, shown)
        with files.told(f"Samples of step {step} cannot be written"):
            run.save_grid(step, sheet)
        self.training.summarize(step, "Summaries of the samples", scores, {"samples": sheet})
        if diversity >= HEALTHY_DIVERSITY:
            with files.told(f"The healthy checkpoint of step {step} cannot be kept"):
                run.pin_healthy()
        sentences = self.training.diagnosis.of_samples(step, diversity, run.healthy_step)
        if self.training.diagnosis.collapsed and run.config.on_collapse == "stop":
            raise UserError(" ".join(sentences))
        _warn(sentences)


def agreement(generator: keras.Model, config: Config) -> float:
    """Returns how well the eyes of a generator's samples match, for a run on `faces`."""
    z = tf.random.stateless_normal([_AGREEMENT_SAMPLES, config.z_dim], [config.seed, -2])
    labels = np.arange(_AGREEMENT_SAMPLES, dtype=np.int32) % max(config.num_classes, 1)
    images = sampling.generate(generator, z, labels)
    return faces.agreement(images, labels)


class Evaluations(Hook):
    """Measures the generator as `sagan-evaluate` does, and keeps the checkpoint if its FID is the lowest.

    Args:
      config: of the run.
      source: its real images.
      strategy: whose replicas share the work.

    Raises:
      UserError: if the classifier is missing.
    """

    of_checkpoint = True

    def __init__(self, config: Config, source: data.Source, strategy: tf.distribute.Strategy):
        from sagan_tf.metrics import classifiers, evaluator  # TF-GAN takes seconds to import.

        super().__init__(config.eval_every_steps)
        with strategy.scope():
            classifier = classifiers.of(config)
        protocol = evaluator.Protocol(num_samples=config.num_samples)
        cache = Run(config.model_dir, config).statistics_dir
        self._evaluator = evaluator.Evaluator(source, classifier, protocol, cache, strategy, config.dataset)

    def _generated(self, step: int) -> sampling.Sampler:
        trainer = self.training.trainer
        return sampling.sampler(trainer.sampled_generator, trainer.config, step=step, use_ema=trainer.ema_generator is not None)

    def missed(self, step: int) -> bool:
        protocol = self._evaluator.protocol_of(self._generated(step))
        return not any(record.step == step and record.protocol == protocol for record in self.training.run.records)

    def __call__(self, step: int, metrics: np.ndarray) -> None:
        run, record = self.training.run, self._evaluator.measure(self._generated(step))
        run.add(record)
        logging.info("Step %d:\n%s", step, record)
        fids = [other.values["fid"] for other in run.records if other.protocol == record.protocol]
        _warn(self.training.diagnosis.of_fids(step, fids))


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        logging.warning("%s", sentence)
