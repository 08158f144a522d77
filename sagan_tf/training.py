"""Training: the compiled loop, a step in it, and the two updates of a GAN that make a step.

`Trainer.update_generator` and `Trainer.update_discriminator` are the algorithm, with explicit inputs. `Trainer.train`
runs them on every replica of a strategy. Noise, labels and augmentation are functions of (seed, step), so that the course of a
run depends neither on the number of devices nor on interruptions.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from sagan_tf import augmentation, losses, networks
from sagan_tf.config import Config

__all__ = ["METRICS", "Adam", "Trainer"]

# A replica's `images` and `labels`; the scalars of an update by name; a loss, and scalars to report, of a replica's inputs.
Batch = dict[str, tf.Tensor]
Scalars = dict[str, tf.Tensor]
Loss = Callable[..., tuple[tf.Tensor, Scalars]]

# What `Trainer.train` returns for each step, in this order.
METRICS = (
    "generator_loss",
    "discriminator_loss_real",
    "discriminator_loss_fake",
    "logits_real",
    "logits_fake",
    "generator_gradient_norm",
    "discriminator_gradient_norm",
    "generator_variable_norm",
    "discriminator_variable_norm",
)

# Of what `Trainer.augmentation_draws` draws for an image of the batch: the numbers for the real and for the generated one.
_REAL, _FAKE = 0, 1


class Trainer:
    """Everything that training changes, and how one step changes it.

    Args:
      config: the settings, with `num_classes >= 0`.
      strategy: where to compute; None: the current one.

    Attributes:
      generator: G.
      discriminator: D.
      ema_generator: the average of G over steps; None without `ema_decay`.
      step: int64 variable, steps done so far.
      rollbacks: int64 variable, how often the run was rolled back after a NaN.
      stop: bool variable; the loop ends, on every worker, after the step in which it becomes True on one.
    """

    def __init__(self, config: Config, strategy: tf.distribute.Strategy | None = None):
        self.config = config
        self.strategy = strategy or tf.distribute.get_strategy()
        self.ema_generator: keras.Model | None = None
        keras.utils.set_random_seed(config.seed)
        with self.strategy.scope():
            self.generator = networks.generator(config)
            self.discriminator = networks.discriminator(config)
            self.generator_optimizer = _adam(config, config.generator_learning_rate, "generator_adam")
            self.generator_optimizer.build(self.generator.trainable_variables)
            self.discriminator_optimizer = _adam(config, config.discriminator_learning_rate, "discriminator_adam")
            self.discriminator_optimizer.build(self.discriminator.trainable_variables)
            if config.ema_decay:
                self.ema_generator = networks.generator(config)
                self.ema_generator.set_weights(self.generator.get_weights())
            aggregation = tf.VariableAggregation.ONLY_FIRST_REPLICA
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False, aggregation=aggregation, name="step")
            self.rollbacks = tf.Variable(0, dtype=tf.int64, trainable=False, aggregation=aggregation, name="rollbacks")
        with tf.device("/cpu:0"):
            self.stop = tf.Variable(False, trainable=False, name="stop")
        self._compiled_updates = tf.function(self._updates, jit_compile=True) if config.jit_compile else self._updates

    @property
    def sampled_generator(self) -> keras.Model:
        """The generator to draw samples from: the averaged one if there is one."""
        return self.ema_generator or self.generator

    def state(self) -> networks.State:
        """Returns every variable that a resumed run needs, by checkpoint name."""
        state = {"step": self.step, "rollbacks": self.rollbacks}
        models = {"generator": self.generator, "discriminator": self.discriminator, "ema_generator": self.ema_generator}
        for name, model in models.items():
            state |= networks.model_state(name, model) if model else {}
        for optimizer in (self.generator_optimizer, self.discriminator_optimizer):
            state |= {variable.path: variable for variable in optimizer.variables}
        return state

    # The loop.

    @tf.function
    def train(self, batches: Iterator, steps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Trains for some steps; ends early when a metric is not finite, or a worker's `stop` is set.

        Args:
          batches: iterator over distributed batches `{"images", "labels"}`.
          steps: int32 scalar tensor, at least 1.

        Returns:
          The `METRICS` of each step done, float32 `[steps done, len(METRICS)]`, averaged over replicas; and whether a worker
          was told to stop, on which all workers agree.
        """
        history = tf.TensorArray(tf.float32, size=0, dynamic_size=True, element_shape=[len(METRICS)])
        done, going, stopped = 0, True, False
        while done < steps and going:
            real = [next(batches) for _ in range(self.config.d_step)]
            results = self.strategy.run(self._step_on_replica, args=(self.step, self.stop, real))
            metrics, stop = (self.strategy.reduce(tf.distribute.ReduceOp.MEAN, result, axis=None) for result in results)
            metrics = tf.concat([metrics, self._variable_norms()], 0)
            self._update_average()
            self.step.assign_add(1)
            history = history.write(done, metrics)
            stopped = stop > 0
            going = tf.reduce_all(tf.math.is_finite(metrics)) and not stopped
            done += 1
        return history.stack(), stopped

    # A step, on every replica.

    def _step_on_replica(self, step: tf.Tensor, stop: tf.Tensor, batches: Sequence[Batch]) -> tuple[tf.Tensor, tf.Tensor]:
        """One step: `g_step` generator updates, then a discriminator update for each real batch; and passes `stop` on."""
        # Drawn outside the compiled part: XLA turns the same bits into other normal numbers.
        updates = range(self.config.g_step + self.config.d_step)
        draws = [(*self.noise(step, update), self.augmentation_draws(step, update)) for update in updates]
        return self._compiled_updates(draws, batches), tf.cast(stop, tf.float32)

    def _updates(self, draws: Sequence[tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]], batches: Sequence[Batch]) -> tf.Tensor:
        metrics: Scalars = {}
        for of_update in draws[: self.config.g_step]:
            metrics |= self.update_generator(*of_update)
        for of_update, batch in zip(draws[self.config.g_step :], batches, strict=True):
            metrics |= self.update_discriminator(batch["images"], batch["labels"], *of_update)
        # The variables' norms, the last of METRICS, follow when all replicas are done.
        return tf.stack([tf.cast(metrics[name], tf.float32) for name in METRICS if name in metrics])

    def noise(self, step: tf.Tensor, update: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws this replica's z and labels, a pure function of (seed, step, update, replica).

        The whole global batch is drawn and cut, so that any number of replicas sees the same one.

        Args:
          step: int64 scalar.
          update: number of the update within the step.

        Returns:
          z float32 `[B / replicas, z_dim]` and labels int32 `[B / replicas]`.
        """
        batch = self.config.batch_size
        seed = tf.stack([tf.constant(self.config.seed, tf.int64), self._number(step, update) * 2])
        z = tf.random.stateless_normal([batch, self.config.z_dim], seed)
        classes = max(self.config.num_classes, 1)
        labels = tf.random.stateless_uniform([batch], seed + tf.constant([0, 1], tf.int64), maxval=classes, dtype=tf.int32)
        return self._part(z), self._part(labels)

    def augmentation_draws(self, step: tf.Tensor, update: int) -> tf.Tensor | None:
        """Draws this replica's numbers for `augmentation.augment`, as `noise` draws z.

        Args:
          step: int64 scalar.
          update: number of the update within the step.

        Returns:
          float32 `[B / replicas, 2, augmentation.DRAWS]` in [0, 1): those for a real image, and those for a generated one.
          None if nothing is augmented.
        """
        if not self.config.augment:
            return None
        # The seeds of z and labels are below 2**31, those of the flips below 0.
        seed = tf.stack([tf.constant(2**32 + self.config.seed, tf.int64), self._number(step, update)])
        return self._part(tf.random.stateless_uniform([self.config.batch_size, 2, augmentation.DRAWS], seed))

    def _number(self, step: tf.Tensor, update: int) -> tf.Tensor:
        """Returns the number of an update, counted from the start of the run."""
        return step * (self.config.g_step + self.config.d_step) + update

    def _part(self, whole: tf.Tensor) -> tf.Tensor:
        """Returns this replica's part of a global batch."""
        size = self.config.batch_size // self.strategy.num_replicas_in_sync
        start = tf.distribute.get_replica_context().replica_id_in_sync_group * size
        return tf.slice(whole, [start] + [0] * (whole.shape.rank - 1), [size, *whole.shape[1:]])

    def _update_average(self) -> None:
        """Moves the averaged generator, if there is one: weights and moving averages by decay, u by copying."""
        if self.ema_generator is None:
            return
        for average, variable in zip(self.ema_generator.variables, self.generator.variables, strict=True):
            keep = 0.0 if average.name == "u" else self.config.ema_decay

            def move(average: tf.Variable, value: tf.Tensor, keep: float = keep) -> None:
                average.assign(keep * average + (1.0 - keep) * tf.convert_to_tensor(value))

            self.strategy.extended.update(average.value, move, args=(variable.value,))

    def _variable_norms(self) -> tf.Tensor:
        """Norms over all variables of each network: not finite as soon as one entry of one variable is not.

        Gradients and losses alone do not tell: on CPU the ReLU of NaN is 0, and moving averages enter neither.
        """
        return tf.stack([tf.linalg.global_norm([v.value for v in m.variables]) for m in (self.generator, self.discriminator)])

    # The two updates, in replica context: the arguments are this replica's part.

    def update_generator(self, z: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor | None = None) -> Scalars:
        """Makes one generator update.

        The generator runs in training mode (moving averages and u move); the discriminator's state stays.

        Args:
          z: float32 `[B, z_dim]`.
          labels: int32 `[B]`.
          draws: with which images are augmented, as `augmentation_draws` returns them; None: they are not.

        Returns:
          `generator_loss` and `generator_gradient_norm`, scalars of this replica.
        """

        def loss_fn(z: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor | None = None) -> tuple[tf.Tensor, Scalars]:
            images = self._augmented(self.generator([z, labels], training=True), draws, _FAKE)
            logits = self.discriminator([images, labels], training=False)
            loss = losses.generator_loss(logits)
            return loss, {"generator_loss": loss}

        metrics, norm = self._update(self.generator, self.generator_optimizer, loss_fn, (z, labels, draws))
        return {**metrics, "generator_gradient_norm": norm}

    def update_discriminator(
        self, images: tf.Tensor, labels: tf.Tensor, z: tf.Tensor, fake_labels: tf.Tensor, draws: tf.Tensor | None = None
    ) -> Scalars:
        """Makes one discriminator update.

        The generator runs in training mode.

        Args:
          images: real images, float32 `[B, H, W, 3]` in [-1, 1].
          labels: their labels, int32 `[B]`.
          z: float32 `[B, z_dim]`.
          fake_labels: labels to generate, int32 `[B]`.
          draws: with which images are augmented, as `augmentation_draws` returns them; None: they are not.

        Returns:
          `discriminator_loss_real`, `discriminator_loss_fake` (their sum is minimised), the mean logits `logits_real` and
          `logits_fake`, and `discriminator_gradient_norm`, of this replica.
        """

        def loss_fn(
            images: tf.Tensor, labels: tf.Tensor, z: tf.Tensor, fake_labels: tf.Tensor, draws: tf.Tensor | None = None
        ) -> tuple[tf.Tensor, Scalars]:
            images = self._augmented(images, draws, _REAL)
            fakes = self._augmented(self.generator([z, fake_labels], training=True), draws, _FAKE)
            logits_real, logits_fake = self.discriminate(images, labels, fakes, fake_labels)
            loss_real, loss_fake = losses.discriminator_loss(logits_real, logits_fake, self.config.loss_type)
            return loss_real + loss_fake, {
                "discriminator_loss_real": loss_real,
                "discriminator_loss_fake": loss_fake,
                "logits_real": tf.reduce_mean(logits_real),
                "logits_fake": tf.reduce_mean(logits_fake),
            }

        inputs = (images, labels, z, fake_labels, draws)
        metrics, norm = self._update(self.discriminator, self.discriminator_optimizer, loss_fn, inputs)
        return {**metrics, "discriminator_gradient_norm": norm}

    def discriminate(
        self, images: tf.Tensor, labels: tf.Tensor, fakes: tf.Tensor, fake_labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the logits of real and of generated images, the discriminator in training mode.

        They pass through it together: it has no batch norm, and both then read the same u, which is stored once, as the
        reference stores it for the real pass alone.
        """
        both = [tf.concat([images, fakes], 0), tf.concat([labels, fake_labels], 0)]
        return tuple(tf.split(self.discriminator(both, training=True), 2))

    def _augmented(self, images: tf.Tensor, draws: tf.Tensor | None, kind: int) -> tf.Tensor:
        """Returns images as the discriminator sees them: changed as the draws of their kind say, if there are any."""
        return images if draws is None else augmentation.augment(images, draws[:, kind], self.config.augment)

    def _update(
        self, model: keras.Model, optimizer: keras.optimizers.Optimizer, loss_fn: Loss, inputs: Sequence[tf.Tensor | None]
    ) -> tuple[Scalars, tf.Tensor]:
        """Applies the gradient of the mean loss over `accumulation_steps` parts of the inputs; the last may be None."""
        parts = self.config.accumulation_steps
        variables = [variable.value for variable in model.trainable_variables]
        total: list[tf.Tensor] = []
        metrics: Scalars = {}
        for part in zip(*(tf.split(value, parts) for value in inputs if value is not None), strict=True):
            # Nothing but this model's variables is watched, so no gradient work is done for the other.
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                loss, part_metrics = loss_fn(*part)
                # The optimizer adds the replicas' gradients; the mean is wanted.
                scaled = optimizer.scale_loss(loss / (parts * self.strategy.num_replicas_in_sync))
            gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(scaled, variables)]
            total = [a + b for a, b in zip(total, gradients, strict=True)] if total else gradients
            for name, value in part_metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value / parts
        norm = tf.linalg.global_norm(total) / optimizer.scale_loss(1.0 / self.strategy.num_replicas_in_sync)
        if self.config.mixed_precision == "float16":
            # An overflow is part of finding the loss scale: the optimizer leaves that update out. It looks at one
            # replica's gradients, so an overflow on any must be seen on all.
            overflow = tf.cast(~tf.math.is_finite(norm), tf.float32)
            overflow = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, overflow) > 0
            total = [tf.where(overflow, tf.constant(math.nan, value.dtype), value) for value in total]
            norm = tf.where(overflow, 0.0, norm)
        optimizer.apply(total, model.trainable_variables)
        return metrics, norm


class Adam(keras.optimizers.Adam):
    """Adam in TF1's form, `lr sqrt(1-b2^t)/(1-b1^t) m / (sqrt(v) + epsilon)`, by TensorFlow's own kernel.

    That kernel is the reference's. It passes over a variable once, where Keras' operations pass over it ten times.
    """

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        index = self._get_variable_index(variable)
        updates = tf.cast(self.iterations.value + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(self.beta_1, updates),
            beta2_power=tf.pow(self.beta_2, updates),
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


def _adam(config: Config, learning_rate: float, name: str) -> keras.optimizers.Optimizer:
    """Returns the optimiser of one network, with loss scaling for float16."""
    optimizer = Adam(learning_rate, beta_1=config.beta1, beta_2=config.beta2, epsilon=config.adam_epsilon, name=name)
    if config.mixed_precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name=f"{name}_loss_scale")
    return optimizer
