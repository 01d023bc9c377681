"""Reading ahead: the next batches are read while the present ones are trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["ahead"]

Item = TypeVar("Item")
_END: Any = object()


def ahead(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """Yield the items of an iterator in their order, up to `depth` of them made beforehand, in a thread.

    A thread is enough, and needs no copy: what takes time is the disk and NumPy, and both let go of Python's lock. What
    the iterator raises is raised when its turn has come.

    Example:
        >>> list(ahead(iter("abc"), depth=2))
        ['a', 'b', 'c']
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        waiting = deque(reader.submit(next, items, _END) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(reader.submit(next, items, _END))
                yield item
        finally:
            reader.shutdown(wait=False, cancel_futures=True)
