"""Many numbers in a few: exact percentiles, and mean and variance that can be merged.

In: voxels of one channel.  Out: order statistics; (count, mean, sum of squared differences).
Whole numbers are counted, others sorted, once; all that is asked afterwards costs next to nothing.
Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", for the merging, which loses no digits where
the mean is large beside the deviation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

BLOCK = 2**20  # values that are summed at a time
MAX_RANGE = 2**17  # whole numbers over a wider range are sorted, not counted


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared differences from it."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @property
    def std(self) -> float:
        """Of the population."""
        return math.sqrt(self.m2 / self.count) if self.count else 0.0

    def merged(self, other: Moments) -> Moments:
        """Of both sets together.

        >>> Moments(2, 1.0, 2.0).merged(Moments(1, 4.0, 0.0))  # 0, 2 and 4
        Moments(count=3, mean=2.0, m2=8.0)
        """
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        step = other.mean - self.mean
        mean = self.mean + step * other.count / count
        return Moments(count, mean, self.m2 + other.m2 + step * step * self.count * other.count / count)


def merge(parts: Iterable[Moments]) -> Moments:
    """Of all sets together, in the order given: the same order gives the same digits."""
    total = Moments()
    for part in parts:
        total = total.merged(part)
    return total


class Distribution:
    """The values of a set in order, each with how often it occurs."""

    def __init__(self, values: np.ndarray) -> None:
        """`values` are finite, of any shape and real type."""
        values = np.ravel(values)
        counts = _counts(values)
        if counts is None:
            self.values, self._cumulative = np.sort(values), None
        else:
            self.values, self._counts = counts
            self._cumulative = np.cumsum(self._counts)
        self.count = values.size

    def percentiles(self, wanted: Iterable[float]) -> list[float]:
        """As numpy.percentile with its default, linear interpolation, does it. The set must not be empty."""
        result = []
        for percent in wanted:
            place = percent / 100 * (self.count - 1)
            below = math.floor(place)
            low, high, part = self._at(below), self._at(min(below + 1, self.count - 1)), place - below
            result.append(low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part))
        return result

    def moments(self, low: float = -math.inf, high: float = math.inf) -> Moments:
        """Of the values with low <= value < high."""
        first, last = np.searchsorted(self.values, [low, high], side="left")
        parts = []
        for i in range(first, last, BLOCK):
            part = slice(i, min(i + BLOCK, last))
            values = self.values[part].astype(np.float64)
            counts = None if self._cumulative is None else self._counts[part]
            count = len(values) if counts is None else int(counts.sum())
            mean = float(np.average(values, weights=counts)) if count else 0.0
            m2 = np.square(values - mean) if counts is None else np.square(values - mean) * counts
            parts.append(Moments(count, mean, float(m2.sum())))
        return merge(parts)

    def clipped_moments(self, low: float, high: float) -> Moments:
        """Of all values, those under `low` taken as `low` and those over `high` as `high`."""
        inside, below = self.moments(low, high), self._num_below(low)
        return inside.merged(Moments(below, low)).merged(Moments(self.count - below - inside.count, high))

    def _num_below(self, value: float) -> int:
        place = int(np.searchsorted(self.values, value, side="left"))
        return place if self._cumulative is None else int(self._cumulative[place - 1]) if place else 0

    def _at(self, rank: int) -> float:
        if self._cumulative is None:
            return float(self.values[rank])
        return float(self.values[np.searchsorted(self._cumulative, rank, side="right")])


def _counts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(the values that occur, how often each does), or None where they are not whole numbers of a small range."""
    if values.size == 0:
        return None
    low, high = values.min(), values.max()
    if not float(high) - float(low) < MAX_RANGE or float(low) != int(low):
        return None
    above = values - low if values.dtype.kind == "f" else values.astype(np.int64) - int(low)
    whole = above.astype(np.int32)
    if values.dtype.kind == "f" and not np.array_equal(whole, above):
        return None
    counts = np.bincount(whole)
    (occurring,) = np.nonzero(counts)
    return occurring + int(low), counts[occurring]
