"""Draws a small STL-10: images of ten things in the published binary files, most of them without a label."""

from pathlib import Path

import numpy as np
from numpy.random import Generator

from datamodules.samples.folder import write_whole
from datamodules.samples.objects import KINDS, image

FOLDER = "stl10_binary"
IMAGES = {"train": 500, "test": 400, "unlabeled": 1000}
FOLDS, FOLD = 10, 100  # folds of the training images, and images in each
SIDE = 96


def write_split(folder: Path, name: str, seed: int) -> None:
    """`<name>_X.bin`: for each image three planes, each column by column; `<name>_y.bin`: labels from 1."""
    number, n = list(IMAGES).index(name), IMAGES[name]
    labels = np.random.default_rng((seed, number)).permutation(np.arange(n) % len(KINDS))
    with (folder / f"{name}_X.bin").open("wb") as file:
        for at, label in enumerate(labels):
            pixels = image(KINDS[label], np.random.default_rng((seed, number, at)), SIDE)
            file.write(pixels.transpose(2, 1, 0).tobytes())
    if name != "unlabeled":
        (folder / f"{name}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
    if name == "train":
        write_folds(folder, labels, np.random.default_rng((seed, len(IMAGES))))


def write_folds(folder: Path, labels: np.ndarray, rng: Generator) -> None:
    """`fold_indices.txt`: in each line the places of a fold's images, as many of each class."""
    lines = []
    for _ in range(FOLDS):
        of_class = [rng.permutation(np.flatnonzero(labels == k))[: FOLD // len(KINDS)] for k in range(len(KINDS))]
        lines.append("".join(f"{at} " for at in rng.permutation(np.concatenate(of_class))) + "\n")
    (folder / "fold_indices.txt").write_text("".join(lines), encoding="ascii")


def draw(root: Path, seed: int = 0) -> None:
    """Draw the set into `root`: complete or not at all, and left alone if it is there.

    Args:
        root: folder to make.
        seed: of everything.
    """

    def write(aside: Path) -> None:
        folder = aside / FOLDER
        folder.mkdir()
        for name in IMAGES:
            write_split(folder, name, seed)
        (folder / "class_names.txt").write_text("\n".join(KINDS) + "\n", encoding="ascii")

    write_whole(root, f"{FOLDER}/class_names.txt", write)
