"""`sagan-evaluate`: Inception Score, FID, intra-FID, KID and more, with the whole protocol on record."""

import hashlib
import os
import time
from collections.abc import Callable

import tensorflow as tf
from absl import flags

from sagan_tf import data
from sagan_tf.commands import cli
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.metrics import classifiers, evaluation
from sagan_tf.metrics.evaluation import Protocol
from sagan_tf.runs import checkpoints as checkpoints_lib
from sagan_tf.runs import distribution, history
from sagan_tf.runs.checkpoints import Checkpoints

FLAGS = flags.FLAGS
# Checkpoints kept whatever their age: that with the lowest FID of each protocol, and that which --watch is at.
BEST = "best_fid"
EVALUATING = "evaluating"
WATCH_SECONDS = 5


def define_flags() -> None:
    """Defines the flags that only this command has."""
    flags.DEFINE_string("saved_model", "", "Evaluate this exported SavedModel in place of the run's checkpoint.")
    flags.DEFINE_string("images", "", "Evaluate this folder of generated images in place of the run's checkpoint.")
    cli.define_checkpoint_flags()
    flags.DEFINE_string("real_split", "", "TFDS split of the real images; by default the one trained on.")
    flags.DEFINE_integer("real_images", 50_000, "Real images to measure against, at most.", lower_bound=2)
    flags.DEFINE_integer("intra_fid_samples", 0, "Generated images per class for intra-FID; 0: leave it out.", lower_bound=0)
    flags.DEFINE_boolean("manifold", True, "Also compute KID, precision, recall, density and coverage.")
    flags.DEFINE_enum("batch_norm", "moving", ["moving", "batch"], "Moving averages, as the paper, or each batch's statistics.")
    cli.define_z_flags()
    flags.DEFINE_integer("eval_batch_size", 64, "Images at a time.", lower_bound=1)
    flags.DEFINE_boolean("watch", False, "Evaluate new checkpoints of a running training, until that of its last step.")
    flags.DEFINE_integer(
        "patience", 0, "With --watch: stop after so many evaluations without a better FID; 0: never.", lower_bound=0
    )
    flags.DEFINE_boolean("print_classifier_source", False, "Say what an offline user has to fetch, and where to put it.")


def cache_dir(config: Config) -> str:
    """Returns the directory of cached statistics."""
    return config.stats_cache or os.path.join(config.model_dir, "statistics")


def evaluate_generator(
    generator, source, config: Config, classifier, protocol: Protocol, real_images: int = 50_000, strategy=None
) -> dict:
    """Returns the record of a Keras generator (see `evaluation.evaluate`); with a strategy, made in its scope."""
    sampler = evaluation.generator_sampler(generator, config.z_dim, protocol)
    outputs = evaluation.sampled_outputs(
        sampler, classifier, protocol.num_samples, config.num_classes, protocol.batch_size, strategy=strategy
    )
    return evaluation.evaluate(outputs, source, config, classifier, protocol, cache_dir(config), real_images)


def measured(config: Config, source, classifier, protocol: Protocol, use_ema: bool, real_images: int = 50_000) -> set[int]:
    """Returns the steps of a run that were measured before, under this very protocol."""
    real = evaluation.real_statistics(source, config, classifier, cache_dir(config), real_images)
    wanted = evaluation.whole_protocol(real, config, classifier, protocol) | {"use_ema": use_ema}
    return {record["step"] for record in history.read(config.model_dir) if record["protocol"] == wanted}


def keep(config: Config, step: int, record: dict) -> bool:
    """Adds a record to its run, and keeps the checkpoint if its FID is the lowest so far under the same protocol.

    Returns:
      Whether it is. A run that cannot be written is left as it is, with a warning.
    """
    before = [
        other["values"]["fid"]
        for other in history.read(config.model_dir)
        if other["step"] != step and other["protocol"] == record["protocol"]
    ]
    best = not before or record["values"]["fid"] < min(before)
    with checkpoints_lib.written_or_told(f"The result of step {step} cannot be recorded in {config.model_dir}"):
        history.append(config.model_dir, step, record)
        if best:
            Checkpoints(config.model_dir).pin(f"{BEST}-{evaluation.fingerprint(record['protocol'])[:8]}", step)
    return best


def _digest(generator) -> str:
    digest = hashlib.sha256()
    for value in generator.get_weights():
        digest.update(value.tobytes())
    return digest.hexdigest()[:8]


def _evaluate_checkpoint(config: Config, source, classifier, protocol: Protocol, strategy, step: int) -> tuple[dict, bool]:
    """Returns the record of a checkpoint, and whether its FID is the lowest so far."""
    with strategy.scope():
        generator, _ = checkpoints_lib.restore(config.model_dir, FLAGS.use_ema, step)
    record = evaluate_generator(generator, source, config, classifier, protocol, FLAGS.real_images, strategy)
    if protocol.intra_fid_samples:
        sampler = evaluation.generator_sampler(generator, config.z_dim, protocol)
        progress = os.path.join(config.model_dir, f"intra_fid-{step}-{_digest(generator)}.json")
        cache = cache_dir(config)
        record["values"] |= evaluation.intra_fid(sampler, source, config, classifier, protocol, cache, progress, strategy)
    record["protocol"]["use_ema"] = checkpoints_lib.uses_ema(config, FLAGS.use_ema)
    return record, keep(config, step, record)


def watch(checkpoints: Checkpoints, train_steps: int, done: set[int], evaluate_step: Callable[[int], bool], patience: int) -> None:
    """Evaluates new checkpoints as they appear, until that of the last step.

    Args:
      checkpoints: of the run, which a training may be adding to.
      train_steps: the last step.
      done: steps that need no evaluation.
      evaluate_step: evaluates the checkpoint of a step; returns whether it is the best so far.
      patience: so many evaluations in a row that are not the best end it too; 0: none do.

    Raises:
      UserError: if the run cannot be written.
    """
    done, worse = set(done), 0
    while train_steps not in done:
        new = [step for step in checkpoints.steps() if step and step not in done]
        if not new:
            time.sleep(WATCH_SECONDS)
            continue
        step = new[-1]  # The newest: an evaluation that cannot keep up passes over the others.
        done |= set(new)
        try:
            checkpoints.pin(EVALUATING, step)  # The training shall not remove it meanwhile.
        except OSError as error:
            raise UserError(
                f"{checkpoints.directory} cannot be written ({error.strerror}), where --watch says which checkpoint it is at: "
                "evaluate single ones with --checkpoint_step."
            ) from error
        worse = 0 if evaluate_step(step) else worse + 1
        if patience and worse >= patience:
            print(f"No better FID in {worse} evaluations: stopping.")
            return


def main() -> None:
    """Measures a trained generator: Inception Score, FID, KID, precision and recall, and intra-FID on request.

    sagan-evaluate --model_dir=DIR --classifier=embedded --num_samples=5000
    sagan-evaluate --model_dir=DIR --intra_fid_samples=500
    sagan-evaluate --model_dir=DIR --watch

    Each result is printed with its protocol; those of checkpoints are added to DIR/metrics.jsonl and TensorBoard.
    """
    if FLAGS.print_classifier_source:
        print(classifiers.inception_source())
        return
    config = cli.trained_config()
    if FLAGS.real_split:
        config = config.replace(data_split=FLAGS.real_split)
    protocol = Protocol(
        num_samples=config.num_samples,
        batch_size=FLAGS.eval_batch_size,
        seed=FLAGS.sample_seed,
        truncation=FLAGS.truncation,
        batch_norm=FLAGS.batch_norm,
        intra_fid_samples=FLAGS.intra_fid_samples,
        manifold=FLAGS.manifold,
    )
    if FLAGS.saved_model and FLAGS.images:
        raise UserError("--saved_model and --images exclude each other: choose one.")
    if config.distribution == "multi_worker":  # The training's cluster: one machine evaluates.
        config = config.replace(distribution="auto")
    strategy = distribution.replicas(config)
    with strategy.scope():
        classifier = classifiers.of(config)
    source = data.open_source(config)
    try:
        if FLAGS.watch:

            def evaluate_step(step: int) -> bool:
                record, best = _evaluate_checkpoint(config, source, classifier, protocol, strategy, step)
                print(f"Step {step}{', the lowest FID so far' if best else ''}:\n{evaluation.table(record)}", flush=True)
                return best

            use_ema = checkpoints_lib.uses_ema(config, FLAGS.use_ema)
            done = measured(config, source, classifier, protocol, use_ema, FLAGS.real_images)
            watch(Checkpoints(config.model_dir), config.train_steps, done, evaluate_step, FLAGS.patience)
            return
        if FLAGS.images or FLAGS.saved_model:
            if FLAGS.images:
                batches = evaluation.folder_images(FLAGS.images, protocol.num_samples, protocol.batch_size)
                generated = (classifier.run(batch) for batch in batches)
            else:
                with strategy.scope():
                    sampler, _ = evaluation.saved_model_sampler(FLAGS.saved_model, protocol)
                generated = evaluation.sampled_outputs(
                    sampler, classifier, protocol.num_samples, config.num_classes, protocol.batch_size, strategy=strategy
                )
            record = evaluation.evaluate(generated, source, config, classifier, protocol, cache_dir(config), FLAGS.real_images)
            record["protocol"]["generated_by"] = FLAGS.images or FLAGS.saved_model
            title = FLAGS.images or FLAGS.saved_model
        else:
            steps = Checkpoints(config.model_dir).steps()
            if not steps:
                raise UserError(f"--model_dir={config.model_dir} holds no checkpoint yet: train first.")
            step = steps[-1] if FLAGS.checkpoint_step is None else FLAGS.checkpoint_step
            record, _ = _evaluate_checkpoint(config, source, classifier, protocol, strategy, step)
            title = f"{config.model_dir}, step {step}"
        print(f"{title}:\n{evaluation.table(record)}")
    except tf.errors.OpError as error:
        raise data.user_error(error) or error from error


def run() -> None:
    """The console script."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
