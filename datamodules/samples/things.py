"""Things that the drawn SNS photos show, each with an outline and colours of its own, and the pen that draws them."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import ImageDraw

SIDE = 96  # pixels of a picture's side
FINE = 2  # supersampling
FULL = SIDE * FINE

Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (205, 35, 40), "orange": (240, 130, 30), "yellow": (245, 205, 45), "green": (45, 150, 70),
    "blue": (40, 85, 200), "purple": (130, 65, 165), "pink": (245, 130, 170), "white": (246, 244, 240),
    "black": (38, 36, 40), "brown": (125, 80, 45),
}  # fmt: skip


def shade(colour: Colour, factor: float) -> Colour:
    """A darker (below 1) or lighter colour."""
    red, green, blue = (int(min(255, channel * factor)) for channel in colour)
    return red, green, blue


class Pen:
    """Draws in a square of its own: -1 to 1 in x and y around the place `at`, `size` to each side."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, at: Point = (0.5, 0.5), size: float = 0.5, flip: bool = False
    ) -> None:
        self.draw, self.at, self.size, self.flip = draw, at, size, -1 if flip else 1

    def point(self, x: float, y: float) -> Point:
        """Pixels of a place."""
        return (self.at[0] + self.flip * x * self.size) * FULL, (self.at[1] + y * self.size) * FULL

    def shape(self, fill: Colour, *corners: Point) -> None:
        """A polygon."""
        self.draw.polygon([self.point(*corner) for corner in corners], fill=fill)

    def box(self, fill: Colour, left: float, top: float, right: float, bottom: float) -> None:
        """An upright rectangle."""
        self.shape(fill, (left, top), (right, top), (right, bottom), (left, bottom))

    def disc(self, fill: Colour, x: float, y: float, wide: float, high: float | None = None) -> None:
        """An ellipse, `wide` and `high` to each side."""
        across, down = self.point(x, y)
        wide, high = wide * self.size * FULL, (wide if high is None else high) * self.size * FULL
        self.draw.ellipse((across - wide, down - high, across + wide, down + high), fill=fill)

    def ring(self, fill: Colour, x: float, y: float, radius: float, thick: float) -> None:
        """A circle's line."""
        across, down = self.point(x, y)
        edge = radius * self.size * FULL
        self.draw.ellipse(
            (across - edge, down - edge, across + edge, down + edge),
            outline=fill,
            width=max(1, int(thick * self.size * FULL)),
        )

    def line(self, fill: Colour, thick: float, *points: Point) -> None:
        """A thick line."""
        self.draw.line(
            [self.point(*point) for point in points],
            fill=fill,
            width=max(1, int(thick * self.size * FULL)),
            joint="curve",
        )


def cat(pen: Pen, colour: Colour) -> None:
    """A sitting cat: pointed ears, a tail."""
    pen.line(shade(colour, 0.8), 0.16, (0.4, 0.75), (0.85, 0.6), (0.85, 0.1))
    pen.disc(colour, 0, 0.5, 0.5, 0.48)
    pen.disc(colour, 0, -0.25, 0.48, 0.42)
    for side in (-1, 1):
        pen.shape(colour, (side * 0.46, -0.25), (side * 0.42, -0.9), (side * 0.08, -0.58))
        pen.disc((90, 190, 90), side * 0.18, -0.28, 0.1)
        pen.line((250, 250, 250), 0.03, (side * 0.15, -0.06), (side * 0.6, -0.14))
    pen.shape((240, 130, 140), (-0.07, -0.1), (0.07, -0.1), (0, -0.02))


def dog(pen: Pen, colour: Colour) -> None:
    """A standing dog in profile: hanging ear, four legs."""
    for x in (-0.55, -0.3, 0.3, 0.55):
        pen.box(shade(colour, 0.85), x - 0.09, 0.3, x + 0.09, 0.95)
    pen.box(colour, -0.7, -0.1, 0.65, 0.5)
    pen.line(colour, 0.14, (-0.65, 0), (-0.95, -0.45))
    pen.disc(colour, 0.6, -0.4, 0.36, 0.34)
    pen.disc(shade(colour, 1.15), 0.88, -0.3, 0.2, 0.16)
    pen.disc((25, 22, 22), 1.0, -0.36, 0.09)
    pen.disc((25, 22, 22), 0.68, -0.48, 0.06)
    pen.disc(shade(colour, 0.55), 0.42, -0.3, 0.14, 0.34)


def bird(pen: Pen, colour: Colour) -> None:
    """A flying bird: two raised wings, a beak."""
    pen.shape(shade(colour, 0.75), (-0.1, 0), (-0.75, -0.85), (0.3, -0.1))
    pen.shape(shade(colour, 1.15), (-0.2, 0.1), (0.15, -1), (0.4, 0.05))
    pen.disc(colour, 0, 0.15, 0.6, 0.26)
    pen.disc(colour, 0.55, 0, 0.24)
    pen.shape((250, 170, 40), (0.75, -0.06), (1.0, 0.04), (0.75, 0.1))
    pen.shape(colour, (-0.5, 0.1), (-1, 0.05), (-0.95, 0.4))
    pen.disc((20, 20, 20), 0.6, -0.05, 0.06)


def fish(pen: Pen, colour: Colour) -> None:
    """A striped fish."""
    pen.shape(shade(colour, 0.8), (-0.5, 0), (-1, -0.5), (-0.85, 0), (-1, 0.5))
    pen.disc(colour, 0.1, 0, 0.75, 0.45)
    for x in (-0.2, 0.15, 0.45):
        pen.disc((250, 250, 250), x, 0, 0.07, 0.4)
    pen.disc((20, 20, 20), 0.65, -0.1, 0.08)


def coffee(pen: Pen, colour: Colour) -> None:
    """A white cup seen from the side, dark coffee in it, a saucer, steam."""
    white = (248, 246, 242)
    pen.disc(shade(white, 0.82), 0, 0.72, 0.95, 0.18)
    pen.ring(white, 0.72, 0.12, 0.3, 0.12)
    pen.shape(white, (-0.7, -0.25), (0.7, -0.25), (0.45, 0.72), (-0.45, 0.72))
    pen.disc(white, 0, -0.25, 0.7, 0.2)
    pen.disc((92, 54, 28), 0, -0.25, 0.6, 0.15)
    for x in (-0.25, 0.15):
        pen.line((230, 230, 230), 0.06, (x, -0.5), (x + 0.1, -0.65), (x, -0.8), (x + 0.1, -0.95))


def cake(pen: Pen, colour: Colour) -> None:
    """Two tiers with cream, candles, a cherry."""
    pen.box(colour, -0.85, 0.25, 0.85, 0.9)
    pen.box((255, 245, 236), -0.85, 0.25, 0.85, 0.42)
    pen.box(colour, -0.55, -0.3, 0.55, 0.25)
    pen.box((255, 245, 236), -0.55, -0.3, 0.55, -0.14)
    for x in (-0.35, 0, 0.35):
        pen.box((90, 150, 230), x - 0.05, -0.65, x + 0.05, -0.3)
        pen.disc((255, 200, 60), x, -0.76, 0.08, 0.13)


def pizza(pen: Pen, colour: Colour) -> None:
    """A whole pizza: crust, cheese, salami."""
    pen.disc((196, 132, 62), 0, 0, 0.95)
    pen.disc((250, 208, 96), 0, 0, 0.8)
    for angle, reach in ((0.3, 0.5), (1.5, 0.45), (2.7, 0.55), (3.9, 0.45), (5.2, 0.5), (0, 0)):
        pen.disc((190, 48, 36), reach * np.cos(angle), reach * np.sin(angle), 0.17)
    for angle in (0, np.pi / 3, 2 * np.pi / 3):
        pen.line((196, 132, 62), 0.03, (np.cos(angle), np.sin(angle)), (-np.cos(angle), -np.sin(angle)))


def apple(pen: Pen, colour: Colour) -> None:
    """An apple with stalk and leaf."""
    for x in (-0.3, 0.3):
        pen.disc(colour, x, 0.15, 0.58, 0.72)
    pen.line((96, 64, 36), 0.1, (0, -0.4), (0.1, -0.9))
    pen.disc((70, 160, 60), 0.42, -0.72, 0.3, 0.14)
    pen.disc(shade(colour, 1.5), -0.4, -0.1, 0.12, 0.2)


def flower(pen: Pen, colour: Colour) -> None:
    """Six petals on a stalk with leaves."""
    pen.line((50, 140, 60), 0.1, (0, 0), (0, 1))
    pen.disc((50, 140, 60), -0.3, 0.7, 0.3, 0.12)
    pen.disc((50, 140, 60), 0.3, 0.6, 0.3, 0.12)
    for angle in np.arange(6) * np.pi / 3:
        pen.disc(colour, 0.42 * np.cos(angle), -0.35 + 0.42 * np.sin(angle), 0.27)
    pen.disc((250, 210, 60), 0, -0.35, 0.24)


def bicycle(pen: Pen, colour: Colour) -> None:
    """Two wheels and a frame of thin lines."""
    for x in (-0.6, 0.6):
        pen.ring((24, 24, 26), x, 0.4, 0.42, 0.09)
    pen.line(colour, 0.11, (-0.6, 0.4), (-0.2, -0.25), (0.4, -0.25), (0, 0.4), (-0.6, 0.4))
    pen.line(colour, 0.11, (0, 0.4), (-0.28, -0.45))
    pen.line(colour, 0.11, (0.6, 0.4), (0.36, -0.55), (0.62, -0.6))
    pen.line((24, 24, 26), 0.12, (-0.45, -0.46), (-0.1, -0.46))


def car(pen: Pen, colour: Colour) -> None:
    """A car from the side."""
    pen.shape(colour, (-0.6, 0), (-0.35, -0.45), (0.3, -0.45), (0.6, 0))
    pen.shape((190, 220, 235), (-0.45, -0.02), (-0.28, -0.36), (0.24, -0.36), (0.44, -0.02))
    pen.box(colour, -1, 0, 1, 0.42)
    pen.line(colour, 0.07, (-0.02, -0.4), (-0.02, 0))
    for x in (-0.55, 0.55):
        pen.disc((26, 26, 28), x, 0.42, 0.24)
        pen.disc((180, 180, 184), x, 0.42, 0.1)


def boat(pen: Pen, colour: Colour) -> None:
    """A sailing boat: hull, mast, two sails."""
    pen.line((96, 64, 36), 0.08, (0, 0.45), (0, -1))
    pen.shape((250, 250, 246), (0.08, -0.95), (0.8, 0.3), (0.08, 0.3))
    pen.shape((232, 232, 226), (-0.08, -0.7), (-0.65, 0.3), (-0.08, 0.3))
    pen.shape(colour, (-0.95, 0.42), (0.95, 0.42), (0.6, 0.85), (-0.6, 0.85))


def balloon(pen: Pen, colour: Colour) -> None:
    """Three balloons on strings."""
    for x, y, factor in ((-0.42, -0.3, 0.8), (0.42, -0.25, 1.1), (0, -0.5, 1.0)):
        pen.line((70, 70, 70), 0.03, (x, y), (0, 1))
        pen.disc(shade(colour, factor), x, y, 0.36, 0.44)
        pen.disc(shade(colour, 1.6), x - 0.12, y - 0.16, 0.07, 0.1)


def umbrella(pen: Pen, colour: Colour) -> None:
    """An open umbrella with a hooked handle."""
    pen.line((80, 60, 50), 0.09, (0, -0.1), (0, 0.85), (0.2, 0.95), (0.3, 0.78))
    corners = [(np.cos(a), 0.05 - 0.9 * np.sin(a)) for a in np.linspace(0, np.pi, 16)]
    pen.shape(colour, *corners)
    for x in (-0.34, 0.34):
        pen.line(shade(colour, 0.65), 0.05, (0, -0.85), (x, 0.05))


def book(pen: Pen, colour: Colour) -> None:
    """An open book with lines of text."""
    pen.shape(colour, (-1, -0.55), (0, -0.42), (1, -0.55), (1, 0.65), (0, 0.8), (-1, 0.65))
    for side in (-1, 1):
        pen.shape((250, 246, 234), (0, -0.38), (side * 0.88, -0.52), (side * 0.88, 0.52), (0, 0.68))
        for y in (-0.25, -0.05, 0.15, 0.35):
            pen.line((120, 116, 110), 0.04, (side * 0.14, y + 0.04), (side * 0.74, y - 0.06))


Thing = Callable[[Pen, Colour], None]
THINGS: dict[str, tuple[Thing, Sequence[str]]] = {  # how to draw it, and the colours that it comes in
    "cat": (cat, ("orange", "black", "white")), "dog": (dog, ("brown", "white")), "bird": (bird, ("blue", "yellow")),
    "fish": (fish, ("orange",)), "coffee": (coffee, ("white",)), "cake": (cake, ("pink",)),
    "pizza": (pizza, ("yellow",)), "apple": (apple, ("red", "green")), "flower": (flower, ("pink", "red", "purple")),
    "bicycle": (bicycle, ("red", "blue", "green")), "car": (car, ("red", "blue", "yellow")),
    "boat": (boat, ("red", "brown")), "balloon": (balloon, ("red", "yellow", "purple")),
    "umbrella": (umbrella, ("red", "blue", "purple")), "book": (book, ("blue", "green")),
}  # fmt: skip
