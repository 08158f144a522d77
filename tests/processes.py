"""Commands in processes of their own, forked from one that has imported TensorFlow: each starts at once."""

import multiprocessing
import os
import runpy
import sys
import tempfile

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["sagan_tf.commands", "sagan_tf.runs.loop", "sagan_tf.metrics.scores"])


class Command:
    """A running command.

    Args:
      name: of the module in `sagan_tf.commands`.
      *arguments: of the command.
    """

    def __init__(self, name, *arguments):
        self._outputs = [tempfile.NamedTemporaryFile("r", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        paths = [output.name for output in self._outputs]
        self._process = _CONTEXT.Process(target=_run, args=(f"sagan_tf.commands.{name}", list(map(str, arguments)), paths))
        self._process.start()
        self.pid = self._process.pid

    @property
    def running(self):
        return self._process.is_alive()

    @property
    def stdout(self):
        return self._read(0)

    @property
    def stderr(self):
        return self._read(1)

    def _read(self, number):
        self._outputs[number].seek(0)
        return self._outputs[number].read()

    def kill(self):
        self._process.kill()
        self._process.join()

    def wait(self, timeout=900):
        """Waits for its end; returns the exit code."""
        self._process.join(timeout)
        if self.running:
            self.kill()
            raise TimeoutError(self.stderr)
        return self._process.exitcode


def _run(module, arguments, paths):
    for descriptor, path in enumerate(paths, start=1):
        file = os.open(path, os.O_WRONLY)
        os.dup2(file, descriptor)
        os.close(file)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
