"""`sagan-reproduce`: runs a suite of flagfiles one after another, and gathers the results into one table and a plot."""

from absl import flags

from sagan_tf import files
from sagan_tf.commands import cli
from sagan_tf.errors import UserError
from sagan_tf.experiments import plot, runner, suite, table

__all__ = ["define_flags", "main", "run"]

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags that only this command has."""
    flags.DEFINE_string("suite", "", "Folder of flagfiles (*.cfg), an arm each.")
    flags.DEFINE_string("output", "", "Directory for the runs, one in ARM-seedN each.")
    flags.DEFINE_string("results", "", "Directory for the records, the table and the plot; empty: OUTPUT/results.")
    flags.DEFINE_string("scale", "", "Flagfile of settings that replace those of every arm.")
    flags.DEFINE_string("seeds", "0", "Seeds to run every arm with, separated by commas.")
    flags.DEFINE_string("arms", "", "Arms to run, separated by commas; empty: all of the suite.")
    flags.DEFINE_string("shard", "1/1", "i/n: run the i-th of n equal parts of the suite, for n machines.")
    flags.DEFINE_boolean("tabulate", False, "Make table and plot from the records of --results, and run nothing.")


def main() -> None:
    """Runs a suite of flagfiles one after another, an arm each, and gathers the results into one table and a plot.

    sagan-reproduce --suite=flags/study --output=runs/study --seeds=0,1,2
    sagan-reproduce --suite=flags/paper --output=runs/paper --scale=flags/scale/faces32.cfg --shard=1/2
    sagan-reproduce --tabulate --results=runs/study/results

    Each run is a `sagan-train` in OUTPUT/ARM-seedN, and then a `sagan-evaluate`; arms with the same settings share
    one. A run that is finished leaves a record RESULTS/ARM-seedN.json, from which alone table.md, table.csv and
    plot.png are made, and its last grid of samples, ARM-seedN.png. The same command goes on where a killed one
    stopped; SIGTERM is passed on to the run, which saves, and ends the suite with code 75. `--scale` names a flagfile
    whose settings replace those of every arm; the place of the block follows the image size, and an arm whose place
    does not exist at that size is left out.
    """
    output, results = files.resolve(FLAGS.output, "output"), files.resolve(FLAGS.results, "results")
    results = results or (output and files.join(output, "results"))
    if FLAGS.tabulate:
        if not results:
            raise UserError("--results is missing: name a directory of records.")
    else:
        if not FLAGS.suite or not output:
            raise UserError("--suite and --output are needed: a folder of flagfiles, and a directory for the runs.")
        loaded = suite.load_suite(FLAGS.suite, FLAGS.scale)
        runner.run_suite(loaded, suite.plan(loaded, FLAGS.seeds, FLAGS.arms, FLAGS.shard), output, results)
    print(table.write_table(results), end="")
    plot.write_plot(results)


def run() -> None:
    """The console script."""
    cli.run(main, define_flags, settings=False)


if __name__ == "__main__":
    run()
