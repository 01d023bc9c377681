"""Time measurement: calibrated, interleaved rounds, with a clock that suits the device.

Every sample is the mean of so many calls that it lasts long enough for the clock. A round takes one sample of each
call, in an order that changes from round to round, so that whatever slows the machine slows all of them; what is
compared is samples of the same round.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Protocol, TypeVar

__all__ = ["BlockingClock", "Call", "Clock", "CudaClock", "HostClock", "QueueClock", "interleave"]

Key = TypeVar("Key", bound=Hashable)
Arguments = Sequence[tuple[Any, ...]]

_MOST_CALLS = 10_000
_WARM_NS = 2e6  # calls shorter than this are made once more, untimed, before each sample


class Clock(Protocol):
    """Times a sequence of calls."""

    name: str

    def __call__(self, function: Callable[..., Any], arguments: Arguments) -> float:
        """Call the function with each of the arguments; return the total time, in ns."""


@dataclass(frozen=True)
class Call:
    """A call to be timed.

    Args:
        function: as the user calls it; without a wrapper, which would count as well.
        arguments: a ring of arguments. The calls go round it, so that large inputs come from memory, not from a cache.
        clock: what times it.
    """

    function: Callable[..., Any]
    arguments: Arguments
    clock: Clock


class HostClock:
    """The processor's own clock, for work that is complete when the call returns (PyTorch on the CPU)."""

    name = "host"

    def __call__(self, function: Callable[..., Any], arguments: Arguments) -> float:
        """Return the ns that all calls took."""
        start = time.perf_counter_ns()
        for args in arguments:
            function(*args)
        return time.perf_counter_ns() - start


class BlockingClock:
    """The processor's clock, waiting for each result: JAX on the CPU, where separate calls could run side by side."""

    name = "host"

    def __init__(self) -> None:
        import jax

        self._wait = jax.block_until_ready

    def __call__(self, function: Callable[..., Any], arguments: Arguments) -> float:
        """Return the ns that all calls took."""
        wait = self._wait
        start = time.perf_counter_ns()
        for args in arguments:
            wait(function(*args))
        return time.perf_counter_ns() - start


class QueueClock:
    """The processor's clock, waiting for all results at the end: JAX on a GPU, which runs one call after the other."""

    name = "launch"

    def __init__(self) -> None:
        import jax

        self._wait = jax.block_until_ready

    def __call__(self, function: Callable[..., Any], arguments: Arguments) -> float:
        """Return the ns that all calls took."""
        start = time.perf_counter_ns()
        results = [function(*args) for args in arguments]
        self._wait(results)
        return time.perf_counter_ns() - start


class CudaClock:
    """Events on the GPU's own stream.

    Args:
        queued: False: the calls are launched as they come, and the slower of host and device is what is measured
            ("launch"). True: the device is kept busy until the host has launched all of them, so that the events see
            the device alone ("device").
    """

    def __init__(self, queued: bool) -> None:
        self.name = "device" if queued else "launch"
        self._cycles = 1_000_000 if queued else 0  # about half a millisecond at first

    def __call__(self, function: Callable[..., Any], arguments: Arguments) -> float:
        """Return the ns that all calls took."""
        while True:
            elapsed, in_time = self._measure(function, arguments)
            if in_time:
                return elapsed
            if self._cycles >= 400_000_000:
                raise TimeoutError("the host launches too slowly for the device's own time to be seen")
            self._cycles *= 4

    def _measure(self, function: Callable[..., Any], arguments: Arguments) -> tuple[float, bool]:
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        if self._cycles:
            torch.cuda._sleep(self._cycles)
        start.record()
        for args in arguments:
            function(*args)
        end.record()
        in_time = not self._cycles or not start.query()  # every launch came before the device started
        end.synchronize()
        return start.elapsed_time(end) * 1e6, in_time


def interleave(
    calls: Mapping[Key, Call],
    *,
    rounds: tuple[int, int],
    seconds: float = 0.0,
    sample_ns: float = 200e3,
    repeat: int | None = None,
    beside: Callable[[Key], Hashable] = lambda key: key,
    seed: int = 0,
) -> tuple[dict[Key, list[float]], dict[Key, BaseException]]:
    """Time all calls in interleaved rounds.

    Args:
        calls: what to time.
        rounds: the fewest and the most rounds.
        seconds: how long the rounds may last; the fewest are made in any case.
        sample_ns: the least that a sample lasts, in ns, unless `repeat` says how many calls it is.
        repeat: calls of each sample.
        beside: keys for which this is equal are timed one right after the other, since what a machine does changes
            within a long round.
        seed: of the order within the rounds.

    Returns:
        key → ns per call, one sample a round; key → why it failed, for those that raised, which have no samples.
    """
    failures: dict[Key, BaseException] = {}
    repeats: dict[Key, tuple[int, bool]] = {}
    for key, call in calls.items():
        try:
            repeats[key] = _calibrate(call, sample_ns, repeat)
        except Exception as error:
            failures[key] = error
    samples: dict[Key, list[float]] = {key: [] for key in repeats}
    order, shuffle = _grouped(repeats, beside), random.Random(seed)
    started = time.perf_counter()
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would be charged to the call being timed
    try:
        for done in range(rounds[1]):
            if done >= rounds[0] and time.perf_counter() - started > seconds:
                break
            shuffle.shuffle(order)
            for group in order:
                shuffle.shuffle(group)
            for key in [key for group in order for key in group if key not in failures]:
                try:
                    samples[key].append(_sample(calls[key], *repeats[key], start=done))
                except Exception as error:
                    failures[key] = error
    finally:
        if was_enabled:
            gc.enable()
    return {key: values for key, values in samples.items() if key not in failures}, failures


def _grouped(keys: Iterable[Key], beside: Callable[[Key], Hashable]) -> list[list[Key]]:
    groups: dict[Hashable, list[Key]] = {}
    for key in keys:
        groups.setdefault(beside(key), []).append(key)
    return list(groups.values())


def _sample(call: Call, repeat: int, warm: bool, start: int) -> float:
    """Take one sample, in ns per call, from position `start` of the ring of inputs on."""
    ring = call.arguments
    if warm:
        call.clock(call.function, ring[:1])
    chosen = list(islice(cycle(ring), start % len(ring), start % len(ring) + repeat))
    return call.clock(call.function, chosen) / repeat


def _calibrate(call: Call, sample_ns: float, repeat: int | None) -> tuple[int, bool]:
    """Return the number of calls in a sample, and whether they are short enough for a warm-up each time."""
    _sample(call, len(call.arguments), warm=False, start=0)
    if repeat is not None:
        return repeat, True
    count = 1
    while True:
        lasted = _sample(call, count, warm=False, start=0) * count
        if lasted >= sample_ns or count >= _MOST_CALLS:
            return count, lasted / count < _WARM_NS
        count = min(_MOST_CALLS, max(count + 1, int(1.2 * count * sample_ns / max(lasted, 1.0))))
