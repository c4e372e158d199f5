"""Shared by all benchmarks: sides that run in turn, and their ratios round by round.

A machine's speed drifts, so the sides are never measured one after the other: each round runs them all, every second
one backwards, and a ratio is taken within its round.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

Job = Callable[[], float]
Taken = dict[str, list[float]]


def timed(work: Callable[[], object], repeats: int = 1, clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of processor time that one of `repeats` calls takes."""
    start = clock()
    for _ in range(repeats):
        work()
    return (clock() - start) / repeats


def in_turn(sides: Mapping[str, Job], rounds: int) -> Taken:
    """Seconds of each side in each round; a first round more only warms up."""
    taken: Taken = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            seconds = sides[name]()
            if number:
                taken[name].append(seconds)
    return taken


class Ratio(NamedTuple):
    """A ratio's median over the rounds, and its range."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        digits = 2 if self.median < 20 else 1 if self.median < 100 else 0
        return f"{self.median:.{digits}f} x [{self.least:.{digits}f} … {self.most:.{digits}f}]"


def ratio(over: list[float], under: list[float]) -> Ratio:
    """Of two sides that were measured in the same rounds."""
    found = sorted(a / b for a, b in zip(over, under, strict=True))
    return Ratio(statistics.median(found), found[0], found[-1])


def show(taken: Taken, over: str, under: str, goal: str = "") -> None:
    """One line: both sides in milliseconds, their ratio and what it should be."""
    slow, fast = (f"{name} {statistics.median(taken[name]) * 1e3:,.2f} ms" for name in (over, under))
    print(f"  {slow:34} / {fast:34} = {ratio(taken[over], taken[under])}   {goal and f'goal {goal}'}", flush=True)
