"""From pixels to the square a network sees: framing (letterbox, squash, crop) and the random changes of training.

Rotate -> translate -> scale is one affine map, so pixels are resampled once. In coordinates n in [-1, 1]^2 of the
output square, a photo's region is read at

    u = F R(-a) (n / s - 2 t)

for an angle a, a shift t (shares of the side) and a factor s, where F stretches the square over the letterbox.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator

from datamodules.images import BadImage, Pixels

Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]
Box = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax in pixels of the upright photo
FITS = ("letterbox", "squash", "crop")
FILL = 128  # grey around a letterbox and behind a turned photo
LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))
LIMITS = {  # else 0 to 1
    "rotate": (0, 180), "exposure": (0, 8), "centre": (0.01, 1), "area": (0.01, 1), "scale": (0, 0.99),
}  # fmt: skip
COARSE = 1.5  # a bilinear warp of a region larger than this many times its place would skip pixels


class Region(NamedTuple):
    """Part of a photo: edges as shares of width and height, and the width and height it gets in the output square."""

    left: float
    top: float
    right: float
    bottom: float
    width: int
    height: int


@dataclass(frozen=True)
class Augment:
    """Strengths of the random changes, each drawn uniformly in its range; 0 (for `centre` and `area`: 1) is off.

    Noise, exposure and contrast are off by default: the source of the FASCODE recipe found that they hurt.

    Args:
        rotate: degrees, +-.
        translate: share of the square's side, +-, in x and in y.
        scale: share, +-: 0.1 draws a factor from 0.9 to 1.1.
        flip: probability of a mirror image.
        centre: share of the region's width and height that a crop of its middle keeps; the one change without chance.
        area: least share of the region that a random crop keeps (aspect 3/4 to 4/3, stretched over the whole square).
        noise: standard deviation of Gaussian noise as a share of the full range.
        exposure: stops, +-: 1 draws a gain from 1/2 to 2.
        contrast: share, +-, around the picture's mean.
    """

    rotate: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    flip: float = 0.0
    centre: float = 1.0
    area: float = 1.0
    noise: float = 0.0
    exposure: float = 0.0
    contrast: float = 0.0

    @classmethod
    def of(cls, settings: Mapping[str, float] | None) -> Self:
        """From a mapping in YAML.

        Raises:
            ValueError: an unknown name, or a strength outside its range.
        """
        known = [field.name for field in fields(cls)]
        for name, value in (settings or {}).items():
            if name not in known:
                raise ValueError(f"augment has no setting {name!r}; it has {', '.join(known)}")
            least, most = LIMITS.get(name, (0, 1))
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise ValueError(f"augment.{name}={value!r} is not a number between {least} and {most}")
        return cls(**(settings or {}))

    @property
    def moves(self) -> bool:
        """Whether pixels move other than by cropping and mirroring."""
        return bool(self.rotate or self.translate or self.scale)


def affine(degrees: float, shift: tuple[float, float], factor: float, stretch: tuple[float, float]) -> Matrix:
    """The 2 x 3 matrix that says where the square reads, for content that is rotated, then translated, then scaled.

    Args:
        degrees: turn of the content, clockwise as seen.
        shift: of the content, as shares of the square's side.
        factor: of size.
        stretch: side of the square over the region's width and height inside it (1, 1 without a letterbox).
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    (right, down), (wide, high) = shift, stretch
    x = wide * cos / factor, wide * sin / factor, -2 * wide * (cos * right + sin * down)
    y = -high * sin / factor, high * cos / factor, -2 * high * (cos * down - sin * right)
    return x, y


def middle(region: Region, share: float) -> Region:
    """The middle of the region, `share` of its width and height; in the output it gets the place of the whole."""
    across, down = (region.right - region.left) * (1 - share) / 2, (region.bottom - region.top) * (1 - share) / 2
    edges = region.left + across, region.top + down, region.right - across, region.bottom - down
    return Region(*edges, region.width, region.height)


def window(region: Region, area: float, size: tuple[int, int], side: int, rng: Generator) -> Region:
    """A random part of the region, at least `area` of it, of aspect 3/4 to 4/3: the well-known random resized crop.

    Args:
        region: the part of the photo to choose from.
        area: least share of the region's area.
        size: width and height of the region in pixels.
        side: of the output square, which the part fills.
        rng: source of randomness.
    """
    for _ in range(10):
        share, aspect = rng.uniform(area, 1) * size[0] * size[1], math.exp(rng.uniform(*LOG_ASPECT))
        wide, high = math.sqrt(share * aspect) / size[0], math.sqrt(share / aspect) / size[1]
        if wide <= 1 and high <= 1:
            across, down = region.right - region.left, region.bottom - region.top
            left = region.left + across * (1 - wide) * rng.uniform()
            top = region.top + down * (1 - high) * rng.uniform()
            return Region(left, top, left + across * wide, top + down * high, side, side)
    return region._replace(width=side, height=side)


def cut(pixels: Pixels, region: Region) -> Pixels:
    """The region's pixels, at least one, as a view."""
    height, width = pixels.shape[:2]
    left, top = min(round(region.left * width), width - 1), min(round(region.top * height), height - 1)
    return pixels[top : max(top + 1, round(region.bottom * height)), left : max(left + 1, round(region.right * width))]


def resize(pixels: Pixels, width: int, height: int) -> Pixels:
    """Antialiased bilinear resize of (height, width, 3) pixels to planes (3, height, width), 8-bit throughout."""
    planes = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    if pixels.shape[:2] != (height, width):
        planes = F.interpolate(planes[None], (height, width), mode="bilinear", antialias=True)[0]
    return planes.numpy()


def warp(pixels: Pixels, matrix: Matrix, side: int) -> Pixels:
    """Planes (3, side, side) read bilinearly where `matrix` says, grey where there is nothing.

    Grid and conversions are numpy's on purpose: torch would start threads of its own for them in each decode thread.
    """
    (ax, bx, cx), (ay, by, cy) = matrix
    steps = (np.arange(side) + 0.5) / side * 2 - 1
    # x and y of a place as one complex number: half the time of two strided sums.
    across = (complex(ax, ay) * steps + complex(cx, cy)).astype(np.complex64)
    grid = (across + (complex(bx, by) * steps).astype(np.complex64)[:, None]).view(np.float32).reshape(1, side, side, 2)
    # grid_sample fills with zero, so grey is moved to zero and back.
    planes = torch.from_numpy(np.subtract(pixels, FILL, dtype=np.float32)).permute(2, 0, 1)[None]
    read = F.grid_sample(planes, torch.from_numpy(grid), mode="bilinear", padding_mode="zeros", align_corners=False)
    return np.add(read[0].numpy(), np.float32(FILL + 0.5)).astype(np.uint8)


def put(planes: Pixels, out: Pixels) -> None:
    """Write planes into (height, width, 3) pixels: three plane copies take a quarter of a transposed copy's time."""
    for channel in range(3):
        out[..., channel] = planes[channel]


class Transform:
    """Photo, box and (in training) randomness to a square of uint8 pixels.

    Args:
        side: of the square, in pixels.
        fit: `letterbox` keeps the aspect and fills with grey, `squash` stretches, `crop` takes the middle square.
        margin: added on each side of a box, as a share of the box's size; cut off at the photo's edge.
        augment: strengths of the random changes.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(self, side: int, fit: str, margin: float = 0.0, augment: Augment | None = None) -> None:
        if isinstance(side, bool) or not isinstance(side, int) or side < 8:
            raise ValueError(f"image_size={side!r} is not a whole number of at least 8 pixels")
        if fit not in FITS:
            raise ValueError(f"fit={fit!r} is not one of {', '.join(FITS)}")
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin <= 5:
            raise ValueError(f"margin={margin!r} is not a share of the box between 0 and 5")
        self.side, self.fit, self.margin, self.augment = side, fit, margin, augment or Augment()

    def __repr__(self) -> str:
        """What evaluation sees, in words: stored features are keyed by it."""
        return f"Transform(side={self.side}, fit={self.fit}, margin={self.margin})"

    @property
    def is_random(self) -> bool:
        """Whether training sees a photo changed at random, so that no two epochs show the same pixels."""
        return self.augment != Augment()

    def region(self, box: Box | None, size: tuple[int, int]) -> Region:
        """The part of a photo of `size` (width, height) that is shown; None is the whole photo.

        Raises:
            BadImage: the box does not meet the photo.
        """
        width, height = size
        left, top, right, bottom = (0.0, 0.0, width, height) if box is None else box
        wide, high = (right - left) * self.margin, (bottom - top) * self.margin
        left, right = max(0.0, left - wide), min(width, right + wide)
        top, bottom = max(0.0, top - high), min(height, bottom + high)
        wide, high = right - left, bottom - top
        if wide <= 0 or high <= 0:
            raise BadImage(f"its box {box} does not meet the photo ({width} x {height})")
        if self.fit == "crop":
            left, top = left + max(0, wide - high) / 2, top + max(0, high - wide) / 2
            wide = high = min(wide, high)
        inside = (self.side, self.side)
        if self.fit == "letterbox":
            unit = self.side / max(wide, high)
            inside = (max(1, round(wide * unit)), max(1, round(high * unit)))
        return Region(left / width, top / height, (left + wide) / width, (top + high) / height, *inside)

    def needed(self, region: Region, size: tuple[int, int]) -> float:
        """Share of the photo's `size` at which training still has all the pixels that the region gets in the square."""
        wide, high = (region.right - region.left) * size[0], (region.bottom - region.top) * size[1]
        return max(region.width / wide, region.height / high) / self.augment.centre

    def exact(self, pixels: Pixels, region: Region, out: Pixels) -> None:
        """Write the region as evaluation sees it: the same photo gives the same pixels."""
        left, top = (self.side - region.width) // 2, (self.side - region.height) // 2
        if (region.width, region.height) != (self.side, self.side):
            out[:] = FILL
        inside = out[top : top + region.height, left : left + region.width]
        put(resize(cut(pixels, region), region.width, region.height), inside)

    def random(self, pixels: Pixels, region: Region, rng: Generator, out: Pixels) -> None:
        """Write the region with the random changes of training, all of them drawn from `rng`."""
        change = self.augment
        turn, right, down, grow, mirror = rng.uniform(-1, 1, 5)
        if change.centre < 1:
            region = middle(region, change.centre)
        if change.area < 1:
            height, width = cut(pixels, region).shape[:2]
            region = window(region, change.area, (width, height), self.side, rng)
        target = out[:, ::-1] if mirror < 2 * change.flip - 1 else out
        if not change.moves:
            self.exact(pixels, region, target)
        else:
            stretch = self.side / region.width, self.side / region.height
            shift = right * change.translate, down * change.translate
            matrix = affine(turn * change.rotate, shift, 1 + grow * change.scale, stretch)
            put(warp(self._near(cut(pixels, region), region), matrix, self.side), target)
        if change.noise or change.exposure or change.contrast:
            self._colour(out, rng)

    @staticmethod
    def _near(part: Pixels, region: Region) -> Pixels:
        """The part, made smaller first where a bilinear warp alone would alias."""
        if part.shape[0] <= COARSE * region.height and part.shape[1] <= COARSE * region.width:
            return part
        return resize(part, region.width, region.height).transpose(1, 2, 0)

    def _colour(self, out: Pixels, rng: Generator) -> None:
        """Exposure, then contrast, then noise, in place."""
        exposure, contrast = rng.uniform(-1, 1, 2)
        values = out.astype(np.float32) * np.float32(2 ** (exposure * self.augment.exposure))
        mean = values.mean()
        values = (values - mean) * np.float32(1 + contrast * self.augment.contrast) + mean
        if self.augment.noise:
            values += rng.standard_normal(values.shape, dtype=np.float32) * np.float32(255 * self.augment.noise)
        out[:] = np.clip(values + 0.5, 0, 255).astype(np.uint8)
