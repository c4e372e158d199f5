"""Draws a small set of shoe photos, `<brand>/<product>/*.jpg`: brands with a style, products with details, many angles.

A brand is its sign on the side, its sole and its heel. A product is its colours, its shaft and its toe cap; several
brands have products of the same colours, so that colour alone tells no brand. Where the shoe stands, how it is turned,
its size and the light say nothing.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from datamodules.samples.folder import write_whole

SIDE = 96  # pixels of a photo's side
FINE = 2  # supersampling
FULL = SIDE * FINE
PHOTOS = 12  # of each product

Colour = tuple[int, int, int]
Point = tuple[float, float]

BLACK, WHITE, RED, BLUE = (38, 38, 44), (240, 240, 238), (196, 44, 48), (44, 84, 176)
GREEN, YELLOW, TAN, PINK = (52, 128, 80), (236, 196, 60), (176, 128, 84), (232, 140, 172)


class Style(NamedTuple):
    """What all shoes of a brand share: the sign's name, and thickness of sole and rise of the heel, in the plane."""

    sign: str
    sole: float
    heel: float


class Product(NamedTuple):
    """One product: its name, the colours of upper, sign and sole, the height of its shaft, whether it has a toe cap."""

    name: str
    upper: Colour
    sign: Colour
    sole: Colour
    shaft: float
    cap: bool


STYLES = {
    "Aurora": Style("stripes", 0.1, 0.0),
    "Bolt & Sons": Style("bolt", 0.16, 0.06),
    "눈치": Style("disc", 0.08, 0.22),
    "Volta 5": Style("cross", 0.2, 0.0),
}
PRODUCTS = (
    Product("Runner Low", BLACK, WHITE, WHITE, 0.1, False),
    Product("Runner High", BLUE, YELLOW, WHITE, 0.5, True),
    Product("Court Classic", WHITE, RED, TAN, 0.25, True),
    Product("Trail Mid", TAN, BLACK, BLACK, 0.35, False),
    Product("City Walk", RED, WHITE, BLACK, 0.2, False),
    Product("Meadow", GREEN, PINK, WHITE, 0.3, True),
)
COUNTS = {"Aurora": 6, "Bolt & Sons": 4, "눈치": 5, "Volta 5": 3}  # products of a brand


class View:
    """How a shoe is seen: maps its own plane (x from heel -1 to toe 1, y up) to pixels.

    Args:
        rng: of mirror image, turn, foreshortening, size and place.
    """

    def __init__(self, rng: Generator) -> None:
        self.turn, self.size = rng.normal(0, 0.18), rng.uniform(0.3, 0.4)
        self.narrow = rng.uniform(0.65, 1) * (-1 if rng.random() < 0.4 else 1)
        self.at = rng.uniform(0.44, 0.56), rng.uniform(0.52, 0.62)

    def __call__(self, *corners: Point) -> list[Point]:
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        found = []
        for x, y in corners:
            across, up = x * self.narrow * cos - y * sin, x * self.narrow * sin + y * cos
            found.append(((self.at[0] + self.size * across) * FULL, (self.at[1] - self.size * up) * FULL))
        return found


def bent(colour: Colour, factor: float) -> Colour:
    """A darker (below 1) or lighter colour."""
    red, green, blue = (int(min(255, channel * factor)) for channel in colour)
    return red, green, blue


def shoe(pen: ImageDraw.ImageDraw, view: View, style: Style, product: Product) -> None:
    """The shoe from its side: sole, upper with shaft, laces, toe cap, sign."""
    low, heel = -0.35, style.heel
    sole = [(-1, low + heel), (-0.4, low + heel * 0.7), (0.3, low), (1.02, low + 0.03)]
    under = [(x, y - style.sole - (heel if x < -0.6 else 0)) for x, y in reversed(sole)]
    pen.polygon(view(*sole, *under), fill=product.sole)
    top = 0.3 + product.shaft
    upper = [(-0.98, low + heel), (-1, 0.2), (-0.92, top), (-0.3, top - 0.05), (-0.1, 0.25), (0.5, -0.02)]
    pen.polygon(
        view(*upper, (0.95, -0.12), (1.02, low + 0.03), (0.3, low), (-0.4, low + heel * 0.7)), fill=product.upper
    )
    if product.cap:
        pen.polygon(view((0.6, -0.04), (0.95, -0.12), (1.02, low + 0.03), (0.66, low + 0.02)), fill=product.sole)
    for step in np.linspace(0, 1, 4):
        x, y = -0.2 + 0.55 * step, 0.34 - 0.3 * step
        pen.line(view((x - 0.12, y - 0.12), (x + 0.02, y)), fill=bent(product.sign, 0.9), width=FINE * 2)
    sign(pen, view, style.sign, product.sign)


def sign(pen: ImageDraw.ImageDraw, view: View, name: str, colour: Colour) -> None:
    """The brand's sign on the side."""
    if name == "stripes":
        for x in (-0.45, -0.2, 0.05):
            pen.polygon(view((x, -0.28), (x + 0.12, -0.28), (x - 0.02, 0.18), (x - 0.14, 0.18)), fill=colour)
    elif name == "bolt":
        bolt = [(-0.6, 0.1), (-0.1, -0.05), (-0.15, 0.08), (0.4, -0.22), (-0.02, -0.14), (0.02, -0.25)]
        pen.polygon(view(*bolt), fill=colour)
    elif name == "disc":
        ring = [(-0.35 + 0.22 * math.cos(t), -0.04 + 0.22 * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 20)]
        pen.polygon(view(*ring), fill=colour)
    else:
        for a, b in (((-0.6, -0.25), (-0.05, 0.18)), ((-0.6, 0.18), (-0.05, -0.25))):
            pen.line(view(a, b), fill=colour, width=FINE * 5)


def photo(style: Style, product: Product, rng: Generator) -> Image.Image:
    """A photo of a product: on a plain ground, as shops take them, in some light."""
    ground = int(rng.uniform(205, 250))
    scene = Image.new("RGB", (FULL, FULL), (ground, ground, int(min(255, ground * rng.uniform(0.96, 1.04)))))
    view = View(rng)
    pen = ImageDraw.Draw(scene)
    pen.polygon(view((-1.1, -0.5), (1.1, -0.46), (0.9, -0.62), (-0.9, -0.66)), fill=bent((ground,) * 3, 0.8))
    shoe(pen, view, style, product)
    pixels = np.asarray(scene.reduce(FINE), dtype=np.float32)
    lit = pixels * rng.uniform(0.75, 1.1) + rng.normal(0, 3, pixels.shape)
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))


def write(root: Path, seed: int) -> None:
    """The photos of all brands, a folder a product."""
    for at, (brand, style) in enumerate(STYLES.items()):
        for number, product in enumerate(PRODUCTS[: COUNTS[brand]]):
            folder = root / brand / product.name
            folder.mkdir(parents=True)
            for place in range(PHOTOS):
                drawn = photo(style, product, np.random.default_rng((seed, at, number, place)))
                drawn.save(folder / f"{place:03d}.jpg", quality=90)


def draw(root: Path, seed: int = 0) -> None:
    """Draw the set into `root`: complete or not at all, and left alone if it is there.

    Args:
        root: folder to make.
        seed: of everything.
    """
    write_whole(root, f"{next(iter(STYLES))}/{PRODUCTS[0].name}/000.jpg", lambda folder: write(folder, seed))
