"""Draws a small set of flower photos in class folders: five kinds, each in many poses, sizes, colours and places.

A kind is its shape: how many petals, how long and how pointed, and what is in the middle. Its colours are those that it
has in gardens, so that several kinds share some; background, place, size, light and tilt say nothing. Some photos show
two or three flowers of the kind.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from datamodules.samples.folder import write_whole

SIDE = 112  # pixels of a photo's side
FINE = 2  # supersampling
FULL = SIDE * FINE
PHOTOS = 60  # of each kind

Colour = tuple[int, int, int]
Point = tuple[float, float]

WHITE, YELLOW, ORANGE, RED = (246, 244, 240), (246, 205, 40), (240, 140, 30), (200, 30, 45)
PINK, PURPLE, BROWN, GREEN = (236, 130, 170), (140, 70, 165), (80, 50, 30), (60, 120, 50)
GROUNDS = ((70, 110, 60), (110, 135, 80), (120, 140, 130), (95, 90, 65), (135, 140, 120), (50, 75, 60))


def light(colour: Colour, factor: float) -> Colour:
    """A darker (below 1) or lighter colour."""
    red, green, blue = (int(min(255, channel * factor)) for channel in colour)
    return red, green, blue


class Bloom:
    """Where and how a flower is seen: draws in its own plane, -1 to 1, turned, tilted and sized.

    Args:
        pen: draws on the photo.
        at: the flower's middle, in shares of the photo.
        size: from its middle to its edge, in shares of the photo.
        turn: in radians.
        tilt: how much of its height is left, 1 from the front.
    """

    def __init__(self, pen: ImageDraw.ImageDraw, at: Point, size: float, turn: float, tilt: float) -> None:
        self.pen, self.at, self.size, self.turn, self.tilt = pen, at, size, turn, tilt

    def point(self, x: float, y: float) -> Point:
        """Pixels of a place in the flower's plane."""
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        across, down = x * cos - y * sin, (x * sin + y * cos) * self.tilt
        return (self.at[0] + self.size * across) * FULL, (self.at[1] + self.size * down) * FULL

    def shape(self, colour: Colour, *corners: Point) -> None:
        """A polygon."""
        self.pen.polygon([self.point(*corner) for corner in corners], fill=colour)

    def disc(self, colour: Colour, radius: float, x: float = 0, y: float = 0) -> None:
        """A circle in the flower's plane."""
        steps = np.linspace(0, 2 * math.pi, 24)
        self.shape(colour, *((x + radius * math.cos(t), y + radius * math.sin(t)) for t in steps))

    def petal(self, colour: Colour, angle: float, length: float, width: float, point: float) -> None:
        """A petal from the middle outwards.

        Args:
            colour: of it.
            angle: of its axis.
            length: to its tip.
            width: at its widest, to each side.
            point: 0 round, 1 pointed.
        """
        along = np.linspace(0, 1, 12)
        across = width * np.sin(math.pi * along ** (1.6 - 0.8 * point)) ** (0.6 + 0.6 * point)
        edge = np.concatenate([length * along + 1j * across, (length * along - 1j * across)[::-1]])
        turned = edge * np.exp(1j * angle)
        self.shape(colour, *zip(turned.real, turned.imag, strict=True))


def daisy(bloom: Bloom, rng: Generator) -> None:
    """Many narrow round petals around a small yellow middle."""
    colour, count = (WHITE, WHITE, WHITE, PINK)[rng.integers(4)], int(rng.integers(13, 19))
    for number in rng.permutation(count):
        angle = 2 * math.pi * number / count
        bloom.petal(light(colour, rng.uniform(0.86, 1)), angle, rng.uniform(0.9, 1), 0.13, 0.1)
    bloom.disc(YELLOW, 0.27)
    bloom.disc(light(YELLOW, 0.85), 0.15)


def dandelion(bloom: Bloom, rng: Generator) -> None:
    """A ball of very many thin rays; yellow, or white when it has gone to seed."""
    seed = rng.random() < 0.3
    colour = (225, 225, 220) if seed else YELLOW
    for ring in (1.0, 0.8, 0.6, 0.4):
        count = int(40 * ring) + 12
        for number in range(count):
            angle = 2 * math.pi * (number + rng.uniform(-0.3, 0.3)) / count
            length = ring * rng.uniform(0.88, 1)
            bloom.petal(light(colour, rng.uniform(0.75, 1) * (1.15 - 0.25 * ring)), angle, length, 0.025, 0.4)
            if seed:
                bloom.disc(WHITE, 0.035, length * math.cos(angle), length * math.sin(angle))
    bloom.disc(BROWN if seed else light(YELLOW, 0.8), 0.1)


def rose(bloom: Bloom, rng: Generator) -> None:
    """Rings of broad petals that lie over each other, darker towards the middle."""
    colour, start = (RED, RED, RED, PINK, WHITE)[rng.integers(5)], rng.uniform(0, math.pi)
    for ring, count, shade in ((0.62, 7, 1.0), (0.46, 6, 0.88), (0.3, 5, 0.76), (0.16, 3, 0.64)):
        for number in range(count):
            angle = start + ring * 9 + 2 * math.pi * number / count
            x, y = ring * math.cos(angle), ring * math.sin(angle)
            bloom.disc(light(colour, shade * 0.78), 0.08 + 0.56 * ring, x, y)
            bloom.disc(light(colour, shade * rng.uniform(0.95, 1.05)), 0.04 + 0.54 * ring, x * 0.96, y * 0.96)
    bloom.disc(light(colour, 0.5), 0.09)


def sunflower(bloom: Bloom, rng: Generator) -> None:
    """Two rows of pointed petals around a large dark middle."""
    colour, count = (YELLOW, YELLOW, ORANGE)[rng.integers(3)], int(rng.integers(15, 21))
    for row, shade in ((0.5, 0.8), (0.0, 1.0)):
        for number in range(count):
            angle = 2 * math.pi * (number + row) / count
            bloom.petal(light(colour, shade * rng.uniform(0.92, 1)), angle, rng.uniform(0.88, 1), 0.15, 1)
    bloom.disc(BROWN, 0.5)
    for radius, angle in zip(rng.uniform(0, 0.45, 60), rng.uniform(0, 2 * math.pi, 60), strict=True):
        bloom.disc(light(BROWN, rng.uniform(0.6, 1.6)), 0.03, radius * math.cos(angle), radius * math.sin(angle))


def tulip(bloom: Bloom, rng: Generator) -> None:
    """A cup of a few pointed petals, seen from the side, on a stem with two long leaves."""
    colour = (PURPLE, PURPLE, PINK, RED, YELLOW)[rng.integers(5)]
    bloom.shape(light(GREEN, 1.1), (-0.07, 0.3), (0.07, 0.3), (0.07, 2.2), (-0.07, 2.2))
    for side in (-1, 1):
        bloom.shape(GREEN, (0, 1.9), (side * 0.75, 0.5 + rng.uniform(0, 0.3)), (side * 0.25, 1.9))
    for x, lean, shade in ((-0.3, -0.25, 0.8), (0.3, 0.25, 0.8), (0.0, 0.0, 1.0)):
        tip = (x + lean, -0.95 + rng.uniform(-0.05, 0.05))
        cup = [(-0.34, 0.45), (-0.5, -0.1), (-0.3, -0.65)]
        left = [(x + a, b) for a, b in cup]
        right = [(x - a, b) for a, b in reversed(cup)]
        bloom.shape(light(colour, shade), *left, tip, *right)


KINDS: dict[str, Callable[[Bloom, Generator], None]] = {
    each.__name__: each for each in (daisy, dandelion, rose, sunflower, tulip)
}


def ground(rng: Generator) -> Image.Image:
    """Something blurred behind the flowers: earth, sky, grass, with spots."""
    scene = Image.new("RGB", (FULL, FULL), light(GROUNDS[rng.integers(len(GROUNDS))], rng.uniform(0.7, 1.2)))
    pen = ImageDraw.Draw(scene)
    for _ in range(rng.integers(8, 20)):
        x, y, wide, high = rng.uniform((-0.1, -0.1, 0.05, 0.05), (1, 1, 0.4, 0.4)) * FULL
        colour = light(GROUNDS[rng.integers(len(GROUNDS))], rng.uniform(0.5, 1.3))
        pen.ellipse((x, y, x + wide, y + high), fill=colour)
    return scene.filter(ImageFilter.GaussianBlur(rng.uniform(3, 9)))


def photo(kind: str, rng: Generator) -> Image.Image:
    """A photo of one to three flowers of a kind."""
    scene = ground(rng)
    pen = ImageDraw.Draw(scene)
    count = int(rng.choice(3, p=(0.8, 0.15, 0.05))) + 1
    upright = kind == "tulip"
    for _ in range(count):
        at = rng.uniform(0.35, 0.65, 2) if count == 1 else rng.uniform(0.22, 0.78, 2)
        size = rng.uniform(0.32, 0.48) if count == 1 else rng.uniform(0.18, 0.28)
        turn = rng.uniform(-0.35, 0.35) if upright else rng.uniform(0, 2 * math.pi)
        tilt = 1.0 if upright else rng.uniform(0.65, 1)
        KINDS[kind](Bloom(pen, (float(at[0]), float(at[1])), size, turn, tilt), rng)
    pixels = np.asarray(scene.reduce(FINE), dtype=np.float32)
    mean = pixels.mean()
    pixels = (pixels - mean) * rng.uniform(0.25, 1.3) + mean * rng.uniform(0.6, 1.3) + rng.normal(0, 3, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write(root: Path, seed: int) -> None:
    """The photos of all kinds, in a folder each."""
    for number, kind in enumerate(KINDS):
        (root / kind).mkdir()
        for at in range(PHOTOS):
            drawn = photo(kind, np.random.default_rng((seed, number, at)))
            drawn.save(root / kind / f"{at:03d}.jpg", quality=90)


def draw(root: Path, seed: int = 0) -> None:
    """Draw the set into `root`: complete or not at all, and left alone if it is there.

    Args:
        root: folder to make.
        seed: of everything.
    """
    write_whole(root, f"{next(iter(KINDS))}/000.jpg", lambda folder: write(folder, seed))
