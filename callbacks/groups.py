"""Groups of vectors that are nearly the same."""

import numpy as np

from callbacks.nearest import Codes, Floats, Places, above, scan, similarities

QUERIES = 256  # rows that are compared with all later ones together
GROUP = 64
EQUAL = 1e-6  # the similarity of equal vectors is 1 but for the rounding of float32


def groups(vectors: Floats, codes: Codes, threshold: float) -> list[list[int]]:
    """Rows that reach a similarity with another row of their group; those that reach it with none are in no group.

    Two ends of a group may be less alike than that, for what is like the same third one belongs together. All pairs are
    compared, which takes n²/2 scores, but only some at a time are in memory.

    Args:
        vectors: unit vectors (n, D), in memory or memory-mapped.
        codes: of the vectors.
        threshold: a cosine.

    Returns:
        Each group's rows in ascending order; the largest group first, of equal ones that of the first row.
    """
    parents = np.arange(len(vectors))
    least = threshold - EQUAL
    for begin in range(0, len(vectors), QUERIES):
        queries = vectors[begin : begin + QUERIES]
        floor = np.full((len(queries), 1), least, np.float32)
        for block in scan(queries, vectors, codes, GROUP, begin):
            leaders = block.scores.view(len(queries), -1, GROUP).amax(2)
            query, row, _ = above(block, leaders, floor)
            # Once they are known to be together, the many pairs of many equal photos need no second look.
            new = (row > query + begin) & (parents[row] != parents[query + begin])
            query, row = query[new], row[new]
            near = similarities(queries, vectors, query, row) >= least
            for one, other in zip((query[near] + begin).tolist(), row[near].tolist(), strict=True):
                unite(parents, one, other)
    return collected(parents)


def unite(parents: Places, one: int, other: int) -> None:
    """Put two rows and all that is with either of them together, below the first of all."""
    first, second = sorted((root(parents, one), root(parents, other)))
    parents[second] = first


def root(parents: Places, row: int) -> int:
    """The first row of a group; the way to it is shortened for the next who asks."""
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = int(parents[row])
    return row


def collected(parents: Places) -> list[list[int]]:
    """The groups of two or more, the largest first."""
    while (shorter := parents[parents]).tolist() != parents.tolist():
        parents = shorter
    order = np.argsort(parents, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(parents[order])) + 1)
    return sorted((part.tolist() for part in parts if len(part) > 1), key=lambda rows: (-len(rows), rows[0]))
