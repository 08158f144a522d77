"""Signals that ask a training to stop."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

__all__ = ["EXIT_INTERRUPTED", "stop_on_signal"]

# The exit code of a training that was interrupted and can go on. It is what sysexits.h calls EX_TEMPFAIL: launchers
# that retry on it continue the run.
EXIT_INTERRUPTED = 75


@contextlib.contextmanager
def stop_on_signal(stop: Callable[[], object]) -> Iterator[None]:
    """Calls `stop` on SIGTERM or SIGINT, even while Python waits for the compiled loop.

    Outside the main thread, where Python takes no signals, it does nothing.

    Args:
      stop: called once, in another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    before_fd = signal.set_wakeup_fd(sender)

    def listen() -> None:
        if os.read(receiver, 1):
            stop()

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
