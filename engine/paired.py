"""Whether one way of doing something beats another: Student's paired test over seeds, one-sided or for equality.

Two runs with the same seed see the same splits and orders, so their difference is quieter than either figure. The test
takes the differences for normal, which a handful of seeds cannot check; its p is to be read as a rough measure.

Reference: Student, 1908; Schuirmann, 1987, for equality within a margin.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

EXPECTED = ("higher", "lower", "same")


@dataclass(frozen=True)
class Paired:
    """What the differences of n pairs say."""

    n: int
    mean: float
    spread: float | None
    p: float | None


def paired_test(differences: Sequence[float], expected: str, margin: float) -> Paired:
    """Test that the mean difference is above `margin`, below `-margin`, or (`same`) between the two.

    Args:
        differences: First minus second, a seed each, finite.
        expected: `higher`, `lower` or `same`.
        margin: A difference that would not matter yet; for `same` the largest that does not matter.

    Returns:
        Mean, sample standard deviation, and p: how likely differences like these are where the claim is not true. Both
        last are None of a single pair.
    """
    n = len(differences)
    mean = statistics.fmean(differences) if n else math.nan
    if n < 2:
        return Paired(n, mean, None, None)
    spread = statistics.stdev(differences)
    above, below = mean - margin, -mean - margin
    if expected == "same":
        p = max(_beyond(mean + margin, spread, n), _beyond(margin - mean, spread, n))
    else:
        p = _beyond(above if expected == "higher" else below, spread, n)
    return Paired(n, mean, spread, p)


def _beyond(excess: float, spread: float, n: int) -> float:
    """The p of a mean that lies `excess` on the claimed side of its bound."""
    if spread <= 1e-12 * abs(excess):
        return 0.0 if excess > 0 else 1.0
    t = excess / (spread / math.sqrt(n))
    return (1 - math.copysign(two_sided(abs(t), n - 1), t)) / 2


def two_sided(t: float, freedom: int) -> float:
    """The share of Student's distribution between -t and t: the finite sums for whole degrees of freedom.

    Reference: Abramowitz and Stegun, 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine, term, total = math.cos(angle), 1.0, 1.0
    if freedom % 2:
        if freedom == 1:
            return 2 * angle / math.pi
        for k in range(3, freedom - 1, 2):
            term *= cosine**2 * (k - 1) / k
            total += term
        return 2 / math.pi * (angle + math.sin(angle) * cosine * total)
    for k in range(2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return math.sin(angle) * total
