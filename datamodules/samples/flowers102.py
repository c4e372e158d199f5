"""Draws a small set in the layout of Oxford Flowers-102: the five kinds of `flowers` under the ids they have there."""

from importlib import import_module
from pathlib import Path

import numpy as np

from datamodules.samples.flowers import KINDS, photo
from datamodules.samples.folder import write_whole

IDS = dict(zip(KINDS, (49, 50, 74, 54, 39), strict=True))  # counted from 1, as in the files
EACH = {"trnid": 10, "valid": 10, "tstid": 20}  # photos of a kind


def write(root: Path, seed: int) -> None:
    """Photos, their labels, and the three lists."""
    savemat = import_module("scipy.io").savemat  # no dependency of the rest
    (root / "jpg").mkdir()
    kinds = [kind for kind in KINDS for _ in range(sum(EACH.values()))]
    order = np.random.default_rng(seed).permutation(len(kinds))
    for number, at in enumerate(order.tolist(), 1):
        drawn = photo(kinds[at], np.random.default_rng((seed, at)))
        drawn.save(root / f"jpg/image_{number:05d}.jpg", quality=90)
    savemat(root / "imagelabels.mat", {"labels": np.array([IDS[kinds[at]] for at in order])})
    parts = np.repeat(list(EACH), list(EACH.values()))[order % sum(EACH.values())]
    savemat(root / "setid.mat", {part: np.flatnonzero(parts == part) + 1 for part in EACH})


def draw(root: Path, seed: int = 0) -> None:
    """Draw the set into `root`: complete or not at all, and left alone if it is there.

    Args:
        root: folder to make.
        seed: of everything.
    """
    write_whole(root, "setid.mat", lambda folder: write(folder, seed))
