"""Draws a small FASCODE: clothed figures whose three attributes can be seen, some of them labelled wrongly on purpose.

Daily is the outfit's shape, Gender the build and the hair, Embellishment the density of the cloth's pattern. Colours,
background, place, size and pose say nothing. `planted.csv` lists the training rows whose label was changed;
`classes.csv` names the ids.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from datamodules.samples.figures import SIDE, Figure
from datamodules.samples.folder import write_rows, write_whole

CLASSES = {
    "Daily": ["T-shirt", "shorts", "dress", "coat", "skirt", "suit", "hanbok 한복"],
    "Gender": ["man", "woman", "unisex", "boy", "girl", "baby"],
    "Embellishment": ["plain", "sparse", "dense"],
}
SHARES = {  # mildly imbalanced
    "Daily": (0.21, 0.17, 0.15, 0.14, 0.12, 0.11, 0.10),
    "Gender": (0.24, 0.22, 0.16, 0.15, 0.13, 0.10),
    "Embellishment": (0.42, 0.33, 0.25),
}
SPLITS = {"train": ("Train", 700), "valid": ("Valid", 150), "test": ("Test", 150)}
WRONG = 0.06  # share of training rows with one wrong label

COLUMNS = ("image_name", "BBox_xmin", "BBox_ymin", "BBox_xmax", "BBox_ymax", *CLASSES)


def _muted(rng: Generator, chroma: int) -> tuple[int, int, int]:
    red, green, blue = np.clip(rng.integers(90, 230) + rng.integers(-chroma, chroma, 3), 0, 255).tolist()
    return red, green, blue


def backdrop(rng: Generator) -> Image.Image:
    """A wall that fades into a floor, with some blurred things on it; of no meaning."""
    rows = np.linspace(0, 1, SIDE)[:, None] * rng.uniform(-40, 40) + _muted(rng, 30)
    rows[int(SIDE * rng.uniform(0.6, 0.9)) :] = _muted(rng, 30)
    scene = Image.fromarray(np.broadcast_to(np.clip(rows, 0, 255)[:, None], (SIDE, SIDE, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(scene)
    for _ in range(rng.integers(2, 6)):
        x, y = rng.uniform(-0.1, 0.9, 2) * SIDE
        wide, high = rng.uniform(0.08, 0.4, 2) * SIDE
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + wide, y + high), fill=_muted(rng, 50))
    return scene.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 3)))


def photo(labels: Sequence[int], rng: Generator) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A photo of one figure and the figure's box.

    Args:
        labels: ids of Daily, Gender and Embellishment.
        rng: source of everything else.
    """
    daily, gender, embellishment = labels
    figure = Figure(daily, gender, embellishment, rng).draw()
    scene = backdrop(rng)
    scene.paste(figure, mask=figure)
    gain = rng.uniform(0.8, 1.15)
    scene = scene.point([min(255, int(value * gain)) for value in range(256)] * 3)
    edges = np.array(figure.getbbox(alpha_only=True)) + rng.integers(-2, 3, 4)
    left, top, right, bottom = np.clip(edges, 0, SIDE).tolist()
    return scene, (left, top, right, bottom)


def planted(truth: dict[str, NDArray[np.int64]], rng: Generator) -> list[tuple[int, str, int]]:
    """Wrong labels for a share of the rows: row, task, and an id that is not the true one."""
    n = len(truth["Daily"])
    wrong = []
    for row in sorted(rng.choice(n, round(WRONG * n), replace=False).tolist()):
        task = str(rng.choice(list(CLASSES)))
        other = [ident for ident in range(len(CLASSES[task])) if ident != truth[task][row]]
        wrong.append((row, task, int(rng.choice(other))))
    return wrong


def write_split(root: Path, split: str, seed: int) -> None:
    """Photos and CSV of one split; for train also `planted.csv`."""
    (folder, n), number = SPLITS[split], list(SPLITS).index(split)
    rng = np.random.default_rng((seed, number))
    truth = {task: rng.choice(len(names), n, p=SHARES[task]) for task, names in CLASSES.items()}
    wrong = planted(truth, rng) if split == "train" else []
    written = {task: ids.copy() for task, ids in truth.items()}
    for row, task, ident in wrong:
        written[task][row] = ident
    rows, files = [], [f"{row // 100:03d}/{row:05d}.jpg" for row in range(n)]
    for row, name in enumerate(files):
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture, box = photo([int(ids[row]) for ids in truth.values()], np.random.default_rng((seed, number, row)))
        picture.save(path, quality=90)
        rows.append([name, *box, *(ids[row] for ids in written.values())])
    write_rows(root / f"info_etri20_emotion_{split}.csv", COLUMNS, rows)
    if wrong:
        lines = [(files[row], task, truth[task][row], ident) for row, task, ident in wrong]
        write_rows(root / "planted.csv", ("file", "task", "true", "written"), lines)


def draw(root: Path, seed: int = 0) -> None:
    """Draw the set into `root`: complete or not at all, and left alone if it is there.

    Args:
        root: folder to make.
        seed: of everything.
    """

    def write(aside: Path) -> None:
        for split in SPLITS:
            write_split(aside, split, seed)
        names = [(task, ident, name) for task, known in CLASSES.items() for ident, name in enumerate(known)]
        write_rows(aside / "classes.csv", ("task", "id", "name"), names)

    write_whole(root, "info_etri20_emotion_train.csv", write)
