"""`sagan-train`: trains a SAGAN, or continues a run where it stopped."""

from sagan_tf.commands import cli
from sagan_tf.runs import strategies
from sagan_tf.runs.hooks import agreement
from sagan_tf.runs.loop import train
from sagan_tf.runs.run import Run

__all__ = ["main", "run"]


def main() -> None:
    """Trains a self-attention GAN; the same command continues an interrupted run.

    sagan-train --flagfile=flags/quickstart.cfg --model_dir=/tmp/quickstart
    sagan-train --dataset=folder:my_images --image_size=64 --model_dir=/tmp/mine
    """
    run = train(cli.config_from_flags())
    if strategies.is_chief(run.config):
        print(_closing_words(run))


def _closing_words(run: Run) -> str:
    config, directory = run.config, run.directory
    lines = [
        f"Trained to step {run.steps[-1]}.",
        f"  checkpoints   {run.checkpoints.directory}",
        f"  sample grids  {run.samples_dir}",
        f"  TensorBoard   tensorboard --logdir={directory}",
        f"  more samples  sagan-sample --model_dir={directory} --output=samples.png",
        f"  SavedModel    sagan-export --model_dir={directory} --export_dir=OUT",
    ]
    if config.dataset == "faces":
        score = agreement(run.generator, config)
        lines.append(f"Agreement of the eyes (1: alike in every image, as in the data; 0: by chance): {score:.3f}")
    if run.measured:
        lines.append(f"Step {run.measured.step}:\n{run.measured}")
    return "\n".join(lines)


def run() -> None:
    """The console script."""
    cli.run(main)


if __name__ == "__main__":
    run()
