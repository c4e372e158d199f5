"""Small pictures of places with things in them: what the drawn SNS photos show.

A picture is a place with a layout and colours of its own, a time or weather, and at most two things, one of them large.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from datamodules.samples.things import COLOURS, FINE, FULL, THINGS, Colour, Pen, shade

SKIES: dict[str, tuple[Colour, Colour]] = {  # top, horizon
    "sunny": ((90, 160, 235), (200, 228, 250)),
    "sunset": ((96, 52, 120), (255, 150, 60)),
    "night": ((10, 12, 40), (32, 36, 84)),
    "snow": ((188, 198, 210), (232, 236, 242)),
    "rain": ((92, 102, 118), (142, 150, 160)),
}
LIGHTS = {
    "sunny": (1, 1, 1),
    "sunset": (1.05, 0.82, 0.66),
    "night": (0.42, 0.45, 0.72),
    "snow": (0.96, 0.98, 1.03),
    "rain": (0.7, 0.74, 0.78),
}


def sea(pen: Pen, rng: Generator, time: str) -> None:
    """Water to the horizon, foam, a strip of sand."""
    high = rng.uniform(-0.25, 0.05)
    pen.box((25, 110, 170), -1, high, 1, 1)
    for y in np.linspace(high + 0.12, 0.55, 5):
        x = rng.uniform(-1, 0.4)
        pen.line((120, 190, 215), 0.02, (x, y), (x + rng.uniform(0.3, 0.8), y))
    pen.shape((228, 204, 150), (-1, rng.uniform(0.6, 0.75)), (1, rng.uniform(0.7, 0.88)), (1, 1), (-1, 1))


def mountain(pen: Pen, rng: Generator, time: str) -> None:
    """Peaks with white caps above a green foot."""
    for x in (rng.uniform(-0.9, -0.3), rng.uniform(0.3, 0.9), rng.uniform(-0.3, 0.3)):
        top, rock = rng.uniform(-0.75, -0.3), shade((112, 104, 112), rng.uniform(0.8, 1.15))
        pen.shape(rock, (x, top), (x + 0.85, 0.7), (x - 0.85, 0.7))
        pen.shape((244, 246, 250), (x, top), (x + 0.23, top + 0.29), (x, top + 0.2), (x - 0.23, top + 0.29))
    pen.box((86, 124, 64), -1, 0.62, 1, 1)


def city(pen: Pen, rng: Generator, time: str) -> None:
    """Towers side by side, with windows that are lit at night."""
    x, window = -1.0, (255, 226, 130) if time in ("night", "sunset") else (176, 204, 222)
    while x < 1:
        wide, top = rng.uniform(0.24, 0.42), rng.uniform(-0.8, 0.05)
        pen.box(shade((104, 112, 130), rng.uniform(0.6, 1.2)), x, top, x + wide, 1)
        for y in np.arange(top + 0.08, 0.95, 0.15):
            for across in np.arange(x + 0.05, x + wide - 0.05, 0.11):
                if rng.random() < 0.75:
                    pen.box(window, across, y, across + 0.05, y + 0.07)
        x += wide


def street(pen: Pen, rng: Generator, time: str) -> None:
    """A road that runs to the horizon between low, bright fronts."""
    high = rng.uniform(-0.05, 0.12)
    for side in (-1, 1):
        for near, far in ((1.0, 0.62), (0.62, 0.3)):
            front = (int(rng.integers(150, 230)), int(rng.integers(90, 150)), int(rng.integers(70, 110)))
            pen.shape(
                front,
                (side * near, -0.75 * near),
                (side * far, -0.75 * far),
                (side * far, high + far * 0.5),
                (side * near, high + near * 0.7),
            )
    pen.shape((74, 74, 80), (-0.05, high), (0.05, high), (1.1, 1), (-1.1, 1))
    for y in (0.25, 0.5, 0.8):
        pen.box((238, 226, 150), -0.05 * y, high + (1 - high) * y, 0.05 * y, high + (1 - high) * (y + 0.12))


def forest(pen: Pen, rng: Generator, time: str) -> None:
    """Dark trunks under dense crowns."""
    pen.box((44, 74, 40), -1, -1, 1, 1)
    for x in np.linspace(-0.95, 0.95, 7) + rng.uniform(-0.08, 0.08, 7):
        pen.box((70, 48, 34), x - 0.05, -0.5, x + 0.05, rng.uniform(0.55, 0.95))
        pen.disc(shade((38, 104, 52), rng.uniform(0.75, 1.25)), x, rng.uniform(-0.85, -0.4), 0.3, 0.36)
    pen.box((72, 62, 38), -1, 0.78, 1, 1)


def park(pen: Pen, rng: Generator, time: str) -> None:
    """A lawn with a few round trees and a path."""
    high = rng.uniform(-0.1, 0.1)
    pen.box((118, 186, 76), -1, high, 1, 1)
    pen.shape((214, 196, 156), (rng.uniform(-0.4, 0.4), high), (0.5, 1), (-0.1, 1))
    for x in (rng.uniform(-0.95, -0.6), rng.uniform(0.55, 0.95)):
        pen.box((112, 78, 48), x - 0.04, high - 0.2, x + 0.04, high + 0.1)
        pen.disc((62, 148, 66), x, high - 0.35, 0.25, 0.27)


def room(pen: Pen, rng: Generator, time: str) -> None:
    """A wall, a wooden floor, a window that shows the time, a picture."""
    pen.box((236, 214, 186), -1, -1, 1, 0.45)
    pen.box((160, 108, 66), -1, 0.45, 1, 1)
    x = rng.uniform(-0.85, -0.55)
    pen.box((250, 250, 248), x - 0.04, -0.84, x + 0.59, -0.11)
    pen.box(SKIES[time][0], x, -0.8, x + 0.55, -0.15)
    pen.line((250, 250, 248), 0.04, (x + 0.275, -0.8), (x + 0.275, -0.15))
    pen.box((122, 60, 60), 0.3, -0.75, 0.8, -0.3)
    pen.box((228, 196, 110), 0.36, -0.69, 0.74, -0.36)


def desert(pen: Pen, rng: Generator, time: str) -> None:
    """Dunes, each with a bright and a dark side."""
    for y in (rng.uniform(-0.2, 0), rng.uniform(0.15, 0.35), rng.uniform(0.5, 0.7)):
        x, sand = rng.uniform(-0.6, 0.6), shade((226, 160, 84), 0.85 + 0.25 * (y + 0.2))
        pen.shape(sand, (-1.2, y + 0.35), (x, y), (1.2, y + 0.3), (1.2, 1), (-1.2, 1))
        pen.shape(shade(sand, 0.72), (x, y), (1.2, y + 0.3), (1.2, 0.6 + y), (x - 0.2, y + 0.4))


Place = Callable[[Pen, Generator, str], None]
PLACES: dict[str, Place] = {
    "sea": sea, "mountain": mountain, "city": city, "street": street, "forest": forest, "park": park, "room": room,
    "desert": desert,
}  # fmt: skip


def _weather(scene: Image.Image, time: str, outdoors: bool, rng: Generator) -> Image.Image:
    """The scene in the time's light, with snow or rain in the air."""
    light = np.array(LIGHTS[time]) * rng.uniform(0.92, 1.08)
    table = [min(255, int(value * factor)) for factor in light for value in range(256)]
    scene = scene.point(table)
    pen = Pen(ImageDraw.Draw(scene))
    for x, y in rng.uniform(-1, 1, (70, 2)) if time in ("snow", "rain") and outdoors else ():
        if time == "snow":
            pen.disc((250, 252, 255), x, y, rng.uniform(0.015, 0.035))
        else:
            pen.line((176, 186, 200), 0.012, (x, y), (x - 0.05, y + 0.16))
    return scene


def picture(place: str, time: str, things: Sequence[tuple[str, str]], rng: Generator) -> Image.Image:
    """A picture of SIDE x SIDE pixels.

    Args:
        place: one of PLACES.
        time: one of SKIES.
        things: (one of THINGS, a colour), the first one large, a second one small.
        rng: source of everything else.
    """
    top, low = np.array(SKIES[time], dtype=float)
    rows = top + (low - top) * np.linspace(0, 1.4, FULL).clip(0, 1)[:, None]
    scene = Image.fromarray(np.broadcast_to(rows[:, None], (FULL, FULL, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(scene)
    PLACES[place](Pen(draw, flip=bool(rng.random() < 0.5)), rng, time)
    scene = _weather(scene, time, place != "room", rng)
    draw = ImageDraw.Draw(scene)
    side = 1 if rng.random() < 0.5 else -1
    for number, (thing, colour) in enumerate(things):
        size = rng.uniform(0.27, 0.36) if not number else rng.uniform(0.14, 0.17)
        aside = 0 if len(things) == 1 else -0.32 * side if number else 0.15 * side
        across = 0.5 + aside + rng.uniform(-0.03, 0.03)
        tone = shade(COLOURS[colour], rng.uniform(0.88, 1.12))
        THINGS[thing][0](Pen(draw, (across, rng.uniform(0.55, 0.7)), size, bool(rng.random() < 0.5)), tone)
    return scene.reduce(FINE).filter(ImageFilter.BoxBlur(rng.uniform(0, 0.5)))
