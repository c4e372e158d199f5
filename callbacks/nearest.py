"""Exact nearest neighbours by cosine: a scan over 8-bit codes that knows how wrong it can be, then float32.

Comparing one query with many vectors costs little but reading them. So codes of 8 bits are read, a quarter of the
bytes, and each score comes with a bound on its error: a row whose score, even with the bound added, stays below the
k-th best is out for certain, and the few others are compared in float32. The answer is that of a whole float32 scan.

For unit vectors x with mean c, and with what rounding to codes leaves, e of the vectors and d of the query,

    x = c + s·code + e,    q = c + t·code' + d,    q·x = q·c + c·(x − c) + (q − c)·(x − c)
    |(q − c)·(x − c) − s·t·code·code'|  <=  |q − c| |e| + |d| |s·code|

Taking the mean out first keeps the bound small where all photos look alike to a network, as they do after a ReLU.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PLANE = 128  # dimensions that lie together: at 256 oneDNN's kernel waits for memory and takes 2.4 times as long
SCORES = 1 << 21  # scores computed together, so that they stay in the cache: rows of a block x queries
ROWS = 1 << 18  # rows of a block at most
PAIRS = 1 << 16  # (query, row) pairs that may wait to be compared in float32
TOGETHER = 1 << 11  # pairs whose vectors are copied together, few enough for the cache
FEW = 1 << 12  # vectors that are better compared in float32 at once
ROUNDING = 1e-5  # of float32 sums, added to every bound
FAST_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")

Floats = NDArray[np.float32]
Places = NDArray[np.int64]


class Codes(NamedTuple):
    """Vectors in 8 bits, and what turns a product of codes into a similarity with a bound.

    Args:
        planes: int8 (P, n, 128), dimensions 0–127 of all vectors, then 128–255 and so on; zeros fill the last plane.
        terms: float32 (4, n): s, c·(x − c), |e| and |s·code| of each vector.
        centre: float32 (D,), c.
    """

    planes: NDArray[np.int8]
    terms: Floats
    centre: Floats

    @classmethod
    def empty(cls, count: int, centre: Floats) -> Self:
        """Room for the codes of `count` vectors in memory."""
        planes = np.empty((-(-len(centre) // PLANE), count, PLANE), np.int8)
        return cls(planes, np.empty((4, count), np.float32), centre)

    def fill(self, begin: int, vectors: Floats) -> None:
        """Write the codes of some vectors from row `begin` on."""
        rows = slice(begin, begin + len(vectors))
        rest = vectors - self.centre
        scale, codes = rounded(rest)
        back = codes * scale
        self.planes[:, rows] = in_planes(codes)
        self.terms[:, rows] = (
            scale[:, 0], rest @ self.centre, np.linalg.norm(rest - back, axis=1), np.linalg.norm(back, axis=1)
        )  # fmt: skip


def rounded(vectors: Floats) -> tuple[Floats, NDArray[np.int8]]:
    """(s, codes) with vectors ≈ s·codes: for each vector s (n, 1), its largest value over 127."""
    scale = np.maximum(np.abs(vectors).max(1, keepdims=True), np.float32(1e-12)) / np.float32(127)
    return scale, np.rint(vectors / scale).astype(np.int8)


def in_planes(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """Codes (n, D) as (P, n, 128)."""
    wide = np.pad(codes, ((0, 0), (0, -codes.shape[1] % PLANE)))
    return np.ascontiguousarray(wide.reshape(len(codes), -1, PLANE).transpose(1, 0, 2))


def encode(vectors: Floats) -> Codes:
    """The codes of unit vectors (n, D), in memory."""
    codes = Codes.empty(len(vectors), vectors.mean(0, dtype=np.float64).astype(np.float32))
    for begin in range(0, len(vectors), ROWS):
        codes.fill(begin, vectors[begin : begin + ROWS])
    return codes


@cache
def has_fast_int8() -> bool:
    """Whether the processor multiplies bytes exactly and fast; without that the scan is one of float32."""
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name) for name in FAST_INT8)


class Block(NamedTuple):
    """Scores of all queries against some rows: a similarity lies between score + `low` and score + `high`.

    Args:
        begin: the first row.
        scores: float32 (Q, B), B a multiple of the scan's `group`; −inf where there is no row.
        low: float32 (Q, 1).
        high: float32 (Q, 1).
    """

    begin: int
    scores: Tensor
    low: Tensor
    high: Tensor


def scan(queries: Floats, vectors: Floats, codes: Codes, group: int, begin: int = 0) -> Iterator[Block]:
    """Scores of unit queries (Q, D) against all rows from `begin` on, block by block; one buffer serves all blocks."""
    size = max(group, min(ROWS, SCORES // len(queries)) // group * group)
    kind = _CodeScores if has_fast_int8() else _FloatScores
    scorer, buffer = kind(queries, vectors, codes, size), torch.empty(len(queries), size)
    for start in range(begin, len(vectors), size):
        rows = slice(start, min(start + size, len(vectors)))
        count = rows.stop - start
        scores = buffer[:, : -(-count // group) * group]
        scores[:, count:] = -torch.inf
        yield Block(start, scores, *scorer.write(rows, scores[:, :count]))


class _FloatScores:
    """Similarities themselves, as exact as float32 is."""

    def __init__(self, queries: Floats, vectors: Floats, codes: Codes, size: int) -> None:
        self.queries, self.vectors = torch.from_numpy(queries), vectors
        self.bound = torch.full((len(queries), 1), ROUNDING)

    def write(self, rows: slice, out: Tensor) -> tuple[Tensor, Tensor]:
        """Write the scores of some rows; returns `low` and `high`."""
        out.copy_(self.queries @ torch.from_numpy(self.vectors[rows]).T)
        return -self.bound, self.bound


class _CodeScores:
    """Scores of codes; the queries have codes too, all with one step t."""

    def __init__(self, queries: Floats, vectors: Floats, codes: Codes, size: int) -> None:
        self.planes, self.terms = torch.from_numpy(codes.planes), torch.from_numpy(codes.terms)
        rest = queries - codes.centre
        step, flat = rounded(rest.reshape(1, -1))
        own, self.step = flat.reshape(rest.shape), float(step[0, 0])
        self.queries = torch.from_numpy(in_planes(own))
        norms = (np.linalg.norm(part, axis=1, keepdims=True) for part in (rest, rest - own * step))
        self.size, self.lost = map(torch.from_numpy, norms)
        self.constant = torch.from_numpy(queries @ codes.centre)[:, None]
        self.products = torch.empty((2, len(queries) * size), dtype=torch.int32)  # flat: a kernel's result has no gaps

    def write(self, rows: slice, out: Tensor) -> tuple[Tensor, Tensor]:
        """Write the scores of some rows; returns `low` and `high`."""
        total, product = (flat[: out.numel()].view(out.shape) for flat in self.products)
        for at, (query, plane) in enumerate(zip(self.queries, self.planes, strict=True)):
            torch._int_mm(query, plane[rows].T, out=product if at else total)
            if at:
                total += product
        scale, offset = self.terms[:2, rows]
        torch.addcmul(offset, total, scale, value=self.step, out=out)
        error, norm = self.terms[2:, rows].amax(1)
        slack = self.size * error + self.lost * norm + ROUNDING
        return self.constant - slack, self.constant + slack


class Nearest:
    """The k nearest rows of each query among those seen so far, and the rows that might yet turn out to be.

    Args:
        queries: unit vectors (Q, D).
        vectors: unit vectors (n, D).
        k: rows wanted of each query.
    """

    def __init__(self, queries: Floats, vectors: Floats, k: int) -> None:
        self.queries, self.vectors, self.k = queries, vectors, k
        # Of each group of rows the best one is looked at first, so there must be many more groups than rows wanted.
        self.group = 1 << (min(64, max(1, 512 // k)).bit_length() - 1)
        self.best = torch.empty(len(queries), 0)  # lower bounds of the best k group leaders, best first
        self.floor = np.full((len(queries), 1), -np.inf, np.float32)  # the k-th best similarity is at least this
        self.waiting: list[Pairs] = []
        self.found = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))

    def add(self, block: Block) -> None:
        """See a block of rows; those that are out for certain are forgotten at once."""
        leaders = block.scores.view(len(self.queries), -1, self.group).amax(2)
        self.best = torch.cat([self.best, leaders + block.low], 1)
        if self.best.shape[1] >= self.k:
            self.best = self.best.topk(self.k).values
            np.maximum(self.floor, self.best.numpy()[:, -1:], out=self.floor)
        self.waiting.append(above(block, leaders, self.floor))
        if sum(len(pairs.query) for pairs in self.waiting) > PAIRS:
            self.settle()

    def settle(self) -> None:
        """Compare what waits in float32, and keep the k nearest of each query."""
        query, row, bound = joined(self.waiting)
        left = bound >= self.floor[query, 0]
        query, row, self.waiting = query[left], row[left], []
        value = similarities(self.queries, self.vectors, query, row)
        self.found, rank = first(joined([self.found, Pairs(query, row, value)]), self.k)
        last = rank == self.k - 1
        self.floor[self.found.query[last], 0] = self.found.value[last] - np.float32(ROUNDING)


class Pairs(NamedTuple):
    """Queries with rows: the similarity of each pair, or what it is at most."""

    query: Places
    row: Places
    value: Floats


def joined(parts: Sequence[Pairs]) -> Pairs:
    """All pairs of some lists."""
    query, row, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Pairs(query, row, value)


def first(pairs: Pairs, k: int) -> tuple[Pairs, Places]:
    """The k best rows of each query, best first, of equal ones the first; and the rank of each, from 0."""
    order = np.lexsort((pairs.row, -pairs.value, pairs.query))
    query = pairs.query[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    kept = order[rank < k]
    return Pairs(query[rank < k], pairs.row[kept], pairs.value[kept]), rank[rank < k]


def above(block: Block, leaders: Tensor, floor: Floats) -> Pairs:
    """All pairs of a block whose similarity may reach `floor` (Q, 1), with what it is at most.

    Args:
        block: the scores.
        leaders: (Q, B / group) best score of each group of rows; only groups whose leader may reach it are looked into.
        floor: a similarity for each query.
    """
    # numpy: these arrays are tiny, and torch takes longer over each call
    needed = np.maximum(floor - block.high.numpy(), np.finfo(np.float32).min)  # −inf stands where there is no row
    query, place = np.nonzero(leaders.numpy() >= needed)
    scores = block.scores.numpy().reshape(*leaders.shape, -1)[query, place]
    near, inside = np.nonzero(scores >= needed[query])
    query, place = query[near], place[near]
    row = block.begin + place * scores.shape[1] + inside
    return Pairs(query, row, scores[near, inside] + block.high.numpy()[query, 0])


def similarities(queries: Floats, vectors: Floats, query: Places, row: Places) -> Floats:
    """q·x in float32 of (query, row) pairs; equal vectors get equal numbers."""
    parts = [np.empty(0, np.float32)]
    for begin in range(0, len(query), TOGETHER):
        some = slice(begin, begin + TOGETHER)
        product: Any = torch.from_numpy(queries[query[some]]).mul_(torch.from_numpy(vectors[row[some]]))
        parts.append(product.sum(1).numpy())
    return np.concatenate(parts)


def nearest(queries: Floats, vectors: Floats, codes: Codes, k: int) -> tuple[Floats, Places]:
    """The k nearest rows of each query, nearest first, of equally near ones the first: similarities, rows, (Q, k) each.

    Args:
        queries: unit vectors (Q, D).
        vectors: unit vectors (n, D), in memory or memory-mapped.
        codes: of the vectors.
        k: at most n.
    """
    if len(vectors) <= FEW:
        found = nearest_of_few(queries, vectors, k)
    else:
        seen = Nearest(queries, vectors, k)
        for block in scan(queries, vectors, codes, seen.group):
            seen.add(block)
        if seen.waiting:
            seen.settle()
        found = seen.found
    return found.value.reshape(len(queries), k), found.row.reshape(len(queries), k)


def nearest_of_few(queries: Floats, vectors: Floats, k: int) -> Pairs:
    """The same without codes, which take longer to set up than a few vectors to read."""
    scores = torch.from_numpy(queries) @ torch.from_numpy(vectors).T
    last = scores.topk(k).values[:, -1:] - ROUNDING
    query, row = np.nonzero((scores >= last).numpy())
    return first(Pairs(query, row, similarities(queries, vectors, query, row)), k)[0]
