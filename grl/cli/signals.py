"""The response of a command to Ctrl-C and SIGTERM."""

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
    """End the process at the second Ctrl-C, whatever it is doing, with status 130 and no message.

    The first Ctrl-C raises KeyboardInterrupt as usual: temporary files are removed, and the terminal is restored. But
    Python raises it only between two of its own instructions, and a compilation takes seconds without one; so a thread
    waits for the second. A file that is being written then keeps its temporary name.
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
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # for another Ctrl-C while Python shuts down
        raise
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)  # ends the thread


def _count(reading: int) -> None:
    interrupts = 0
    while signals := os.read(reading, 1):
        interrupts += signals[0] == signal.SIGINT
        if interrupts == 2:
            if sys.__stdout__ is not None and sys.__stdout__.isatty():
                os.write(sys.__stdout__.fileno(), b"\x1b[?25h\n")  # shows the cursor, which progress bars hide
            os._exit(130)
    os.close(reading)


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM into a request, which the command reads where it can end in good order.

    Yields:
        A function that returns whether SIGTERM has arrived. Only the main thread receives signals; in any other, it
        always returns False.
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
