"""`sagan-evaluate`: Inception Score, FID, intra-FID, KID and more, with the whole protocol on record."""

from absl import flags

from sagan_tf import metrics
from sagan_tf.commands import cli
from sagan_tf.errors import UserError
from sagan_tf.export import saved_model
from sagan_tf.metrics import classifiers
from sagan_tf.runs import evaluation
from sagan_tf.sampling import Draws

__all__ = ["main", "run"]

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags that only this command has."""
    flags.DEFINE_string("saved_model", "", "Evaluate this exported SavedModel in place of the run's checkpoint.")
    flags.DEFINE_string("images", "", "Evaluate this folder or .npz file of generated images in place of the run's checkpoint.")
    flags.DEFINE_string("against", "", "With --images: measure them against this folder or .npz file; no run is needed.")
    cli.define_checkpoint_flags()
    flags.DEFINE_string("real_split", "", "TFDS split of the real images; by default the one trained on.")
    flags.DEFINE_integer("real_images", 50_000, "Real images to measure against, at most.", lower_bound=2)
    flags.DEFINE_integer("intra_fid_samples", 0, "Generated images per class for intra-FID; 0: leave it out.", lower_bound=0)
    flags.DEFINE_boolean("manifold", True, "Also compute KID, precision, recall, density and coverage.")
    flags.DEFINE_enum("batch_norm", "moving", ["moving", "batch"], "Moving averages, as the paper, or each batch's statistics.")
    cli.define_z_flags()
    flags.DEFINE_integer("eval_batch_size", 64, "Images at a time.", lower_bound=1)
    flags.DEFINE_boolean("watch", False, "Evaluate new checkpoints of a running training, until that of its last step.")
    flags.DEFINE_integer("patience", 0, "With --watch: stop after so many evaluations without a better FID; 0: never.", 0)
    flags.DEFINE_boolean("print_classifier_source", False, "Say what an offline user has to fetch, and where to put it.")


def main() -> None:
    """Measures a trained generator: Inception Score, FID, KID, precision and recall, and intra-FID on request.

    sagan-evaluate --model_dir=DIR --classifier=faces --num_samples=5000
    sagan-evaluate --model_dir=DIR --intra_fid_samples=500
    sagan-evaluate --model_dir=DIR --watch
    sagan-evaluate --images=GENERATED --against=REAL

    Each result is printed with its protocol; those of checkpoints are added to DIR/metrics.jsonl and TensorBoard.
    """
    if FLAGS.print_classifier_source:
        print(classifiers.inception_source())
        return
    if FLAGS.saved_model and FLAGS.images:
        raise UserError("--saved_model and --images exclude each other: choose one.")
    if FLAGS.against and not FLAGS.images:
        raise UserError("--against is for --images: name the images to measure against it.")
    config = cli.config_from_flags() if FLAGS.against else cli.trained_config()
    measured = (config.num_samples, FLAGS.eval_batch_size, FLAGS.intra_fid_samples, FLAGS.manifold, FLAGS.real_images)
    protocol, draws = metrics.Protocol(*measured), Draws(FLAGS.sample_seed, FLAGS.truncation, FLAGS.batch_norm)
    if FLAGS.against:
        count = config.num_samples if FLAGS["num_samples"].present else None
        record = metrics.compare(
            FLAGS.images, FLAGS.against, classifiers.of(config), num_samples=count, protocol=protocol, cache=config.stats_cache
        )
        print(f"{FLAGS.images}:\n{record}")
        return
    trained, evaluator = evaluation.prepare(config.replace(data_split=FLAGS.real_split or config.data_split), protocol)
    if FLAGS.watch:
        for text in evaluation.watch_run(trained, evaluator, draws, FLAGS.use_ema, FLAGS.patience):
            print(text, flush=True)
        return
    if FLAGS.images:
        record = evaluator.measure(metrics.Images(FLAGS.images))
    elif FLAGS.saved_model:
        with evaluator.strategy.scope():
            record = evaluator.measure(saved_model.load(FLAGS.saved_model).sampler(draws))
    else:
        record, _ = evaluation.evaluate_run(trained, evaluator, draws, FLAGS.checkpoint_step, FLAGS.use_ema)
    print(f"{FLAGS.images or FLAGS.saved_model or f'{config.model_dir}, step {record.step}'}:\n{record}")


def run() -> None:
    """The console script."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
