"""What Ctrl-C and SIGTERM do to a command."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["die_at_second_interrupt", "termination"]


@contextmanager
def die_at_second_interrupt() -> Iterator[None]:
    """End the process at the second Ctrl-C, whatever it is doing, with status 130 and no word more.

    The first one raises KeyboardInterrupt, as ever: temporary files go, and the terminal is as it was. But Python does
    so between two of its own instructions only, and a compilation takes seconds without one; so a thread waits for the
    second. What is being written then stays under its temporary name.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_count, args=(reading,), daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while Python itself ends, too
        raise
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)  # which ends the thread


def _count(reading: int) -> None:
    interrupts = 0
    while signals := os.read(reading, 1):
        interrupts += signals[0] == signal.SIGINT
        if interrupts == 2:
            if sys.__stdout__ is not None and sys.__stdout__.isatty():
                os.write(sys.__stdout__.fileno(), b"\x1b[?25h\n")  # progress bars hide the cursor
            os._exit(130)
    os.close(reading)


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Take SIGTERM for a request, to be asked for where the command can end in good order.

    Yields:
        what tells whether it has come; outside of the main thread, which alone hears signals, it never has.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
