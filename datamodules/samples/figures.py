"""Clothed figures whose outfit (Daily), build and hair (Gender) and pattern (Embellishment) can be seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops, ImageDraw

SIDE = 160  # pixels of a photo's side
FINE = 2  # supersampling
SKIN = ((244, 208, 177), (224, 172, 125), (198, 134, 92), (141, 85, 54), (99, 60, 40))
HAIR = ((35, 28, 26), (72, 46, 30), (122, 76, 40), (182, 138, 78), (110, 108, 106))

Point = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Build:
    """A body: height in heads, half widths of shoulders and hips in heads."""

    heads: float
    shoulders: float
    hips: float


BUILDS = (
    Build(6.4, 1.05, 0.62),
    Build(6.2, 0.74, 0.72),
    Build(6.2, 0.88, 0.66),
    Build(4.5, 0.72, 0.55),
    Build(4.5, 0.64, 0.60),
    Build(3.1, 0.56, 0.58),
)


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(min(255, channel * factor)) for channel in colour)
    return red, green, blue


def _vivid(rng: Generator, low: int = 40, high: int = 225) -> Colour:
    red, green, blue = rng.integers(low, high, 3).tolist()
    return red, green, blue


class Figure:
    """One clothed figure on a transparent layer; lengths in heads, x from the middle, y from the top of the head."""

    def __init__(self, daily: int, gender: int, embellishment: int, rng: Generator) -> None:
        self.daily, self.gender, self.embellishment, self.rng = daily, gender, embellishment, rng
        self.build = BUILDS[gender]
        full = SIDE * FINE
        self.layer = Image.new("RGBA", (full, full))
        self.pen = ImageDraw.Draw(self.layer)
        self.unit = full * rng.uniform(0.72, 0.86) / self.build.heads
        room = full - self.unit * self.build.heads
        self.at = full / 2 + rng.uniform(-0.12, 0.12) * full, rng.uniform(0.35, 0.65) * room
        self.skin, self.hair = SKIN[rng.integers(len(SKIN))], HAIR[rng.integers(len(HAIR))]
        self.cloth, self.second = _vivid(rng), _vivid(rng)
        self.hip = 1.25 + 0.4 * (self.build.heads - 1.25)
        self.foot = self.build.heads - 0.1
        self.lean = rng.uniform(-0.09, 0.09)
        self.spread, self.swing = rng.uniform(0.28, 0.5), rng.uniform(0.35, 0.8, 2).tolist()

    def point(self, x: float, y: float) -> Point:
        """Pixels of a place on the body, which leans a little around its feet."""
        x += self.lean * (self.foot - y)
        return float(self.at[0] + x * self.unit), float(self.at[1] + y * self.unit)

    def around(self, x: float, y: float, wide: float, high: float) -> tuple[float, float, float, float]:
        """Pixels of the upright rectangle around (x, y), `wide` and `high` to each side."""
        across, down = self.point(x, y)
        return across - wide * self.unit, down - high * self.unit, across + wide * self.unit, down + high * self.unit

    def disc(self, pen: ImageDraw.ImageDraw, x: float, y: float, wide: float, high: float, fill: Colour | int) -> None:
        """An ellipse around (x, y)."""
        pen.ellipse(self.around(x, y, wide, high), fill=fill)

    def limb(self, pen: ImageDraw.ImageDraw, joints: Sequence[Point], thick: float, fill: Colour | int) -> None:
        """A thick line with round ends."""
        pen.line([self.point(*joint) for joint in joints], fill=fill, width=int(thick * self.unit), joint="curve")
        for x, y in (joints[0], joints[-1]):
            self.disc(pen, x, y, thick / 2, thick / 2, fill)

    def shape(self, pen: ImageDraw.ImageDraw, corners: Sequence[Point], fill: Colour | int) -> None:
        """A polygon given by its right half, from top to bottom; the left half mirrors it."""
        both = [*corners, *((-x, y) for x, y in reversed(corners))]
        pen.polygon([self.point(*corner) for corner in both], fill=fill)

    def arm(self, side: int, reach: float = 1.0) -> list[Point]:
        """Shoulder, elbow and hand (or as far as `reach` goes) on one side."""
        length = 0.42 * (self.build.heads - 1)
        x, y = side * (self.build.shoulders - 0.12), 1.42
        out = self.swing[int(side > 0)]
        return [(x, y), (x + side * out * reach * length * 0.6, y + reach * length)]

    def pattern(self) -> Image.Image:
        """Mask of the cloth's ornament: nothing, a few, or many stripes, dots or checks over the whole layer."""
        mask = Image.new("L", self.layer.size)
        if not self.embellishment:
            return mask
        pen, full = ImageDraw.Draw(mask), SIDE * FINE
        step = full * (self.rng.uniform(0.20, 0.24) if self.embellishment == 1 else self.rng.uniform(0.065, 0.08))
        thick, kind = step * (0.16 if self.embellishment == 1 else 0.42), self.rng.integers(3)
        begin = self.rng.uniform(0, step, 2)
        for across in np.arange(begin[0], full, step):
            if kind != 1:
                pen.rectangle((0, across, full, across + thick), fill=255)
            if kind == 2:
                pen.rectangle((across, 0, across + thick, full), fill=255)
            for down in np.arange(begin[1], full, step) if kind == 1 else ():
                radius = max(thick * 0.8, full * 0.016)
                pen.ellipse((across - radius, down - radius, across + radius, down + radius), fill=255)
        return mask

    def wear(self, mask: Image.Image, colour: Colour, ornament: Image.Image) -> None:
        """Lay a garment on the body: its colour, then its ornament in a colour that stands out."""
        box = mask.getbbox()
        if box is None:
            return
        inside = mask.crop(box)
        self.layer.paste(colour, box, inside)
        contrast = _shade(colour, 0.35) if sum(colour) > 3 * 128 else (245, 238, 220)
        self.layer.paste(contrast, box, ImageChops.multiply(inside, ornament.crop(box)))

    def blank(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """An empty mask and a pen for it."""
        mask = Image.new("L", self.layer.size)
        return mask, ImageDraw.Draw(mask)

    def legs(self, pen: ImageDraw.ImageDraw, fill: Colour | int, thick: float, reach: float = 1.0) -> None:
        """Both legs from the hip, as far as `reach` goes."""
        for side in (-1, 1):
            x = side * self.build.hips * 0.55
            end = x + side * self.spread * 0.35 * reach, self.hip + reach * (self.foot - self.hip)
            self.limb(pen, [(x, self.hip), end], thick, fill)

    def body(self) -> None:
        """Legs, shoes, arms and neck."""
        self.legs(self.pen, self.skin, 0.36)
        shoe = _shade(self.second, 0.5)
        for side in (-1, 1):
            x = side * (self.build.hips * 0.55 + self.spread * 0.35)
            self.disc(self.pen, x + side * 0.12, self.foot, 0.34, 0.16, shoe)
            self.limb(self.pen, self.arm(side), 0.30, _shade(self.skin, 0.94))
        self.limb(self.pen, [(0, 0.8), (0, 1.4)], 0.36, _shade(self.skin, 0.9))

    def torso(self, pen: ImageDraw.ImageDraw, bottom: float, hem: float) -> None:
        """The trunk's cloth from the shoulders to `bottom`, `hem` wide there."""
        shoulders = self.build.shoulders
        self.shape(pen, [(0.2, 1.15), (shoulders, 1.3), (shoulders * 0.86, (1.3 + self.hip) / 2), (hem, bottom)], 255)

    def sleeves(self, ornament: Image.Image, colour: Colour, reach: float, thick: float = 0.44) -> None:
        """Both sleeves, a little darker than the trunk so that they stand off."""
        mask, pen = self.blank()
        for side in (-1, 1):
            self.limb(pen, self.arm(side, reach), thick, 255)
        self.wear(mask, _shade(colour, 0.85), ornament)

    def trousers(self, ornament: Image.Image, colour: Colour, reach: float) -> None:
        """Trousers as long as `reach`, or shorts."""
        mask, pen = self.blank()
        self.shape(pen, [(self.build.hips, self.hip - 0.45), (self.build.hips * 1.08, self.hip + 0.2)], 255)
        self.legs(pen, 255, 0.62 if reach < 0.7 else 0.54, reach)
        self.wear(mask, colour, ornament)

    def skirt(self, ornament: Image.Image, colour: Colour, top: float, bottom: float, hem: float) -> None:
        """A skirt from `top` to `bottom`, `hem` wide there, round below."""
        mask, pen = self.blank()
        self.shape(pen, [(self.build.hips * 0.9, top), (hem, bottom)], 255)
        self.disc(pen, 0, bottom, hem, 0.16, 255)
        self.wear(mask, colour, ornament)

    def top(self, ornament: Image.Image, colour: Colour, bottom: float, hem: float) -> None:
        """The trunk's garment."""
        mask, pen = self.blank()
        self.torso(pen, bottom, hem)
        self.wear(mask, colour, ornament)

    def dress(self) -> None:
        """The outfit, by Daily."""
        ornament, cloth, second, hips = self.pattern(), self.cloth, self.second, self.build.hips
        leg = self.foot - self.hip
        if self.daily in (0, 1):
            self.trousers(ornament, second, 0.94 if self.daily == 0 else 0.42)
            self.sleeves(ornament, cloth, 0.42)
            self.top(ornament, cloth, self.hip, hips * 1.1)
        elif self.daily == 2:
            self.top(ornament, cloth, self.hip, hips * 0.95)
            self.skirt(ornament, cloth, self.hip - 0.5, self.hip + 0.55 * leg, hips + 0.25 * leg)
        elif self.daily == 3:
            self.trousers(ornament, second, 0.94)
            self.sleeves(ornament, cloth, 0.9, 0.54)
            self.top(ornament, cloth, self.hip + 0.62 * leg, self.build.shoulders * 1.12)
        elif self.daily == 4:
            self.sleeves(ornament, second, 0.9)
            self.top(ornament, second, self.hip, hips)
            self.skirt(ornament, cloth, self.hip - 0.3, self.hip + 0.3 * leg, hips + 0.28 * leg)
        elif self.daily == 5:
            self.trousers(ornament, cloth, 0.94)
            self.sleeves(ornament, cloth, 0.9)
            self.top(ornament, cloth, self.hip + 0.25, hips * 1.2)
        else:
            self.skirt(ornament, cloth, 1.75, self.foot - 0.15, hips + 0.34 * leg)
            self.sleeves(ornament, second, 0.85, 0.72)
            self.top(ornament, second, 2.0, self.build.shoulders * 0.95)
        self.details()

    def details(self) -> None:
        """What tells outfits of one outline apart: coat front, suit collar and tie, hanbok ribbon."""
        pen, low = self.pen, self.hip + 0.62 * (self.foot - self.hip)
        if self.daily == 3:
            self.limb(pen, [(0, 1.2), (0, low)], 0.09, _shade(self.cloth, 0.45))
            for y in np.linspace(1.7, low - 0.6, 4):
                self.disc(pen, 0.22, y, 0.09, 0.09, (250, 246, 235))
            self.shape(pen, [(0.3, 1.1), (0.52, 1.35), (0.1, 1.6)], _shade(self.cloth, 0.6))
        elif self.daily == 5:
            self.shape(pen, [(0.36, 1.15), (0.0, self.hip - 0.25)], (250, 250, 250))
            self.shape(pen, [(0.1, 1.22), (0.13, self.hip - 0.6), (0.0, self.hip - 0.35)], (170, 30, 40))
            self.limb(pen, [(0, self.hip - 0.25), (0, self.hip + 0.25)], 0.06, _shade(self.cloth, 0.5))
        elif self.daily == 6:
            white = (250, 250, 250)
            self.limb(pen, [(-0.3, 1.15), (0.08, 1.7), (0.3, 1.15)], 0.12, white)
            self.limb(pen, [(0.08, 1.75), (0.22, 3.0 if self.build.heads > 4 else 2.4)], 0.15, (200, 40, 60))

    def long_hair(self) -> None:
        """Hair that falls behind the shoulders, drawn before the clothes."""
        if self.gender == 1:
            self.disc(self.pen, 0, 0.95, 0.66, 0.95, self.hair)

    def head(self) -> None:
        """Face and what is on top: the sign of Gender beside the build."""
        pen = self.pen
        if self.gender == 4:
            for side in (-1, 1):
                self.disc(pen, side * 0.78, 0.52, 0.28, 0.36, self.hair)
        self.disc(pen, 0, 0.5, 0.46, 0.52, self.skin)
        hair = [(-1, 0.5), (1, 0.5)]
        if self.gender in (0, 3):
            pen.chord(self.around(0, 0.4, 0.48, 0.46), 180, 360, fill=self.hair)
            for x in np.linspace(-0.36, 0.36, 4) if self.gender == 3 else ():
                pen.polygon([self.point(x - 0.14, 0.1), self.point(x, -0.2), self.point(x + 0.14, 0.1)], fill=self.hair)
        elif self.gender in (1, 4):
            pen.chord(self.around(0, 0.36, 0.5, 0.44), 175, 365, fill=self.hair)
            for side, y in hair if self.gender == 1 else ():
                self.limb(pen, [(side * 0.46, y - 0.1), (side * 0.54, 1.5)], 0.2, self.hair)
        elif self.gender == 2:
            cap = _shade(self.second, 0.7)
            pen.chord(self.around(0, 0.35, 0.52, 0.45), 180, 360, fill=cap)
            self.limb(pen, [(-0.2, 0.36), (0.86, 0.36)], 0.14, _shade(cap, 0.7))
        else:
            self.limb(pen, [(0, 0.0), (0.1, -0.08)], 0.14, self.hair)
        self.face()

    def face(self) -> None:
        """Eyes and a smile."""
        for side in (-1, 1):
            self.disc(self.pen, side * 0.17, 0.55, 0.05, 0.06, (30, 25, 25))
        self.pen.arc(self.around(0, 0.7, 0.16, 0.13), 25, 155, (120, 40, 40), max(2, int(0.05 * self.unit)))

    def draw(self) -> Image.Image:
        """The figure on a transparent layer of the photo's size."""
        self.long_hair()
        self.body()
        self.dress()
        self.head()
        return self.layer.reduce(FINE)
