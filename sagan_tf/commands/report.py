"""`sagan-report`: one HTML page that says what a run was and how it went, or how several runs compare."""

from absl import flags

from sagan_tf import files
from sagan_tf.commands import cli
from sagan_tf.errors import UserError
from sagan_tf.report import page

__all__ = ["define_flags", "main", "run", "split_directories"]

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags that only this command has."""
    flags.DEFINE_string("output", "", "FILE.html to write. --model_dir may name several runs, A,B,...: they are compared.")


def split_directories(text: str) -> list[str]:
    """Returns the directories that `--model_dir` names: one, or several with commas between.

    Raises:
      UserError: if there is none, or one is named twice.
    """
    whole = not files.is_remote(text) and files.is_dir(files.resolve(text, "model_dir"))
    names = [text] if whole else [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("--model_dir is missing: name the directory of a training run, or several with commas between.")
    names = [files.resolve(name, "model_dir") for name in names]
    if len({(files.parent(name), files.name_of(name)) for name in names}) < len(names):
        raise UserError(f"--model_dir={text} names a run twice: name different ones.")
    return names


def main() -> None:
    """Writes one HTML page about a run: samples, metrics, curves, attention, configuration; or compares runs.

    sagan-report --model_dir=DIR --output=report.html
    sagan-report --model_dir=A,B --output=comparison.html
    """
    size = page.write(split_directories(FLAGS.model_dir), FLAGS.output)
    print(f"Report in {FLAGS.output} ({size / 1e6:.1f} MB): open it in any browser.")


def run() -> None:
    """The console script."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
