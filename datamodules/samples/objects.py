"""Small images of one thing each, for sets that are sorted by what an image shows.

The class is the thing's outline alone: its colour, place, size and side, and everything behind it, are drawn without
looking at the class, so that a network that only counts colours learns nothing.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from datamodules.samples.things import COLOURS, FULL, THINGS, Pen, shade

KINDS = ("bicycle", "bird", "boat", "book", "car", "cat", "dog", "fish", "flower", "umbrella")  # need no own colour


def backdrop(rng: Generator) -> Image.Image:
    """A wall that fades into a floor, with some blurred shapes on it."""
    rows = np.linspace(0, rng.uniform(-40, 40), FULL)[:, None] + rng.integers(60, 220, 3)
    floor = int(FULL * rng.uniform(0.6, 0.9))
    rows[floor:] += rng.integers(-60, 60, 3)
    scene = Image.fromarray(np.broadcast_to(rows.clip(0, 255)[:, None], (FULL, FULL, 3)).astype(np.uint8))
    pen = Pen(ImageDraw.Draw(scene))
    for _ in range(rng.integers(2, 6)):
        x, y, wide, high = *rng.uniform(-1, 1, 2), *rng.uniform(0.1, 0.5, 2)
        colour = tuple(rng.integers(40, 230, 3).tolist())
        if rng.random() < 0.5:
            pen.disc(colour, x, y, wide, high)
        else:
            pen.box(colour, x, y, x + wide, y + high)
    return scene.filter(ImageFilter.BoxBlur(rng.uniform(2, 8)))


def image(kind: str, rng: Generator, side: int) -> NDArray[np.uint8]:
    """An image (side, side, 3) of one thing.

    Args:
        kind: one of KINDS.
        rng: source of everything else.
        side: in pixels; a divisor of FULL.
    """
    scene = backdrop(rng)
    size = rng.uniform(0.3, 0.42)
    at = tuple(rng.uniform(size, 1 - size, 2))
    colour = COLOURS[str(rng.choice(list(COLOURS)))]
    THINGS[kind][0](
        Pen(ImageDraw.Draw(scene), at, size, bool(rng.random() < 0.5)), shade(colour, rng.uniform(0.85, 1.15))
    )
    return np.asarray(scene.reduce(FULL // side))
