"""Prefetching: the next batches are read while the current ones are trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

__all__ = ["prefetch"]

Item = TypeVar("Item")


class _End:
    """Marks the end of an iterator."""


_END: Final = _End()


def prefetch(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """Yield the items of an iterator in their order, with up to `depth` of them made in advance by a thread.

    A thread is enough, and needs no copy: the time goes to the disk and to NumPy, and both release Python's lock.

    Args:
        items: the iterator. An exception that it raises is raised after the items before it.
        depth: the number of items to make in advance.

    Example:
        >>> list(prefetch(iter("abc"), depth=2))
        ['a', 'b', 'c']
    """

    def next_item() -> Item | _End:
        return next(items, _END)

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as reader:
        waiting = deque(reader.submit(next_item) for _ in range(depth))
        try:
            while not isinstance(item := waiting.popleft().result(), _End):
                waiting.append(reader.submit(next_item))
                yield item
        finally:
            reader.shutdown(wait=False, cancel_futures=True)
