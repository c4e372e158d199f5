"""Pictures moved by an affine map: the map's numbers, the network that chooses them, and the sampler that applies them.

An affine map is given as in torch: θ (2, 3) says where each place of the output reads the input, in coordinates that
run from −1 to 1 over width and height, x to the right and y down. So it means the same at any resolution.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.nn.keyed import uniform
from lightning_modules.nn.pixels import as_float

PADDINGS = ("zeros", "border", "reflection")
LIMITS = {"rotation": (0.0, 180.0), "scale": (1.0, 100.0), "shear": (0.0, 10.0), "shift": (0.0, 1.0)}
GRID = 4  # places across and down at which the localisation network still tells where something is


class Affine(NamedTuple):
    """What an affine map does to a picture's content, in words: it is sheared and scaled, turned, then shifted.

    Args:
        rotation: (B,) degrees, clockwise as seen.
        scale_x: (B,) factor of the width before the turn; scale_y: of the height, negative for a mirror image.
        shear: (B,) how far to the right a place goes for each step down.
        shift_x: (B,) to the right, as a share of the width; shift_y: downwards, of the height.
    """

    rotation: Float[Tensor, " b"]
    scale_x: Float[Tensor, " b"]
    scale_y: Float[Tensor, " b"]
    shear: Float[Tensor, " b"]
    shift_x: Float[Tensor, " b"]
    shift_y: Float[Tensor, " b"]


def compose(change: Affine) -> Float[Tensor, "b 2 3"]:
    """θ of a change: reading undoes, from right to left, what the content goes through.

    θ = [A | −A · 2 shift]  with  A = S⁻¹ K⁻¹ R⁻¹,  R the turn, K = (1 shear; 0 1), S = diag(scale_x, scale_y)
    """
    angle = torch.deg2rad(change.rotation)
    cos, sin = angle.cos(), angle.sin()
    right = (cos + change.shear * sin) / change.scale_x, (sin - change.shear * cos) / change.scale_x
    down = -sin / change.scale_y, cos / change.scale_y
    linear = torch.stack([torch.stack(right, -1), torch.stack(down, -1)], -2)
    shift = 2 * torch.stack([change.shift_x, change.shift_y], -1)
    return torch.cat([linear, -linear @ shift[..., None]], -1)


def split(theta: Float[Tensor, "b 2 3"]) -> Affine:
    """The change that θ stands for; the inverse of `compose`, by a QR decomposition of what A undoes.

    A map that squeezes everything onto a line stands for no change: its numbers are not finite.
    """
    (a, b, x), (c, d, y) = (row.unbind(-1) for row in theta.double().unbind(-2))
    determinant = a * d - b * c
    angle = torch.atan2(-c / determinant, d / determinant)  # where the content's own x axis comes to point
    cos, sin = angle.cos(), angle.sin()
    scale_x, scale_y = torch.hypot(c, d) / determinant.abs(), (a * cos + b * sin) / determinant
    shear = (a * sin - b * cos) / determinant / scale_y
    shift_x, shift_y = (b * y - d * x) / determinant / 2, (c * x - a * y) / determinant / 2
    found = torch.rad2deg(angle), scale_x, scale_y, shear, shift_x, shift_y
    return Affine(*(value.to(theta.dtype) for value in found))


def identity(like: Float[Tensor, "b ..."]) -> Float[Tensor, "b 2 3"]:
    """θ that changes nothing, once for each row of `like`."""
    return torch.eye(2, 3, device=like.device, dtype=like.dtype).expand(len(like), 2, 3)


def identity_distance(theta: Float[Tensor, "b 2 3"]) -> Float[Tensor, " b"]:
    """Mean |θ − I| over the six numbers of each picture."""
    return (theta - identity(theta)).abs().mean((1, 2))


def displacement(theta: Float[Tensor, "b 2 3"]) -> Float[Tensor, " b"]:
    """How far θ moves the place that it moves most, as a share of the side: one of the four corners."""
    corners = torch.tensor([[-1.0, -1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, 1]], device=theta.device, dtype=theta.dtype)
    moves = (theta - identity(theta)) @ corners.T  # (B, 2, 4), in coordinates in which the side is 2
    return moves.norm(dim=1).amax(1) / 2


def warp(
    image: Float[Tensor, "b c h w"], theta: Float[Tensor, "b 2 3"], padding: str = "zeros"
) -> Float[Tensor, "b c h w"]:
    """The pictures as θ reads them, bilinearly, at their own size.

    Args:
        image: in 0..1.
        theta: the maps; computed with in float32 whatever the precision around, since bfloat16 has no hundredths of a
            pixel.
        padding: what is read beyond the edge: zeros (black), the border's pixels, or the mirrored picture.
    """
    with torch.autocast(image.device.type, enabled=False):
        grid = F.affine_grid(theta.float(), list(image.shape), align_corners=False)
        return F.grid_sample(image.float(), grid, "bilinear", padding, align_corners=False)


class FreeParameters(nn.Module):
    """Six free numbers: θ = I + raw, as in the spatial transformer's paper and in the source."""

    def forward(self, raw: Float[Tensor, "b 6"]) -> Float[Tensor, "b 2 3"]:
        """θ of what the localisation network says."""
        return identity(raw) + raw.view(-1, 2, 3)

    def undo(self, start: Float[Tensor, " 6"]) -> Float[Tensor, " 6"]:
        """What the network must say for θ − I to be `start`."""
        return start


class BoundedParameters(nn.Module):
    """Six numbers that mean something, each held in its range: value = range · tanh(raw).

    Scales are drawn in their logarithm, so that half the size is as far away as twice the size, and none is ever zero.

    Args:
        ranges: `rotation` in degrees, `scale` as a factor (1.5 is from 1/1.5 to 1.5), `shear`, and `shift` as a share
            of the side; what is left out stays as it is.

    Raises:
        ValueError: an unknown name, a number out of range, or no range at all.
    """

    bounds: Tensor

    def __init__(self, ranges: Mapping[str, float]) -> None:
        super().__init__()
        for name, value in ranges.items():
            if name not in LIMITS:
                raise ValueError(f"generator.ranges has no {name!r}; it has {', '.join(LIMITS)}.")
            least, most = LIMITS[name]
            if not least <= value <= most:
                raise ValueError(f"generator.ranges.{name}={value} is not a number from {least:g} to {most:g}.")
        rotation, shear, shift = (float(ranges.get(name, 0.0)) for name in ("rotation", "shear", "shift"))
        scale = math.log(ranges.get("scale", 1.0))
        bounds = torch.tensor([rotation, scale, scale, shear, shift, shift])
        if not bounds.any():
            raise ValueError(f"generator.ranges={dict(ranges)} leaves nothing to change; null means six free numbers.")
        self.register_buffer("bounds", bounds, persistent=False)

    def forward(self, raw: Float[Tensor, "b 6"]) -> Float[Tensor, "b 2 3"]:
        """θ of what the localisation network says."""
        rotation, wide, high, shear, right, down = (self.bounds * raw.tanh()).unbind(-1)
        return compose(Affine(rotation, wide.exp(), high.exp(), shear, right, down))

    def undo(self, start: Float[Tensor, " 6"]) -> Float[Tensor, " 6"]:
        """What the network must say for each number to be the share `start` of its range."""
        return start.atanh()


class SpatialTransformer(nn.Module):
    """Changes each picture by an affine map that a small network chooses for it.

    A localisation network looks at the picture and says six numbers, a grid of places is laid through the input as they
    say, and the output is read there. All of it can be differentiated, so the six numbers can be learned from any loss
    on the output. With a noise input the same picture can be changed in many ways.

    Reference: Jaderberg et al., Spatial Transformer Networks, 2015. Its last layer starts with zero weights and the
    identity as bias; the source does not say how its own starts.

    Args:
        width: channels of the localisation network's first convolution, which the next two double; the source does not
            describe its own.
        noise: length of the noise input; 0 is none.
        ranges: None for six free numbers, as in the source; or the ranges of `BoundedParameters`.
        start: how far from the identity it begins. Each of the six numbers of θ − I is that far away, to a side drawn
            at random; with ranges it is a share of each range. 0 begins at the identity.
        padding: what lies beyond the edge, `zeros`, `border` or `reflection`.

    Attributes:
        slots: random numbers that it wants for each picture.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(self, width: int, noise: int, ranges: Mapping[str, float] | None, start: float, padding: str) -> None:
        super().__init__()
        if padding not in PADDINGS:
            raise ValueError(f"generator.padding={padding!r} is not one of: {', '.join(PADDINGS)}.")
        for name, value, least in (("width", width, 1), ("noise", noise, 0)):
            if value < least:
                raise ValueError(f"generator.{name}={value} must be {least} or more.")
        if not 0 <= start < 1:
            raise ValueError(f"generator.start={start} must be at least 0, the identity, and below 1.")
        self.slots, self.padding = noise, padding
        self.affine: Any = FreeParameters() if ranges is None else BoundedParameters(ranges)
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(2 * width, 4 * width, 3, 2, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(GRID), nn.Flatten()),
        )
        self.hidden = nn.Linear(4 * width * GRID**2, 2 * width)
        # A layer of its own: among the many features a few numbers would go unheard.
        self.noise = nn.Linear(noise, 2 * width, bias=False) if noise else None
        self.head = nn.Linear(2 * width, 6)
        self.begin(start)

    @torch.no_grad()
    def begin(self, start: float) -> None:
        """Puts the last layer where training begins.

        With noise its weights are small instead of zero, so that it begins around that point: what two noises give must
        differ, or nothing could ever tell them apart.
        """
        side = torch.randint(0, 2, (6,)) * 2.0 - 1
        self.head.bias.copy_(self.affine.undo(start * side))
        nn.init.normal_(self.head.weight, std=0.5 / self.head.in_features**0.5 if self.slots else 0.0)

    def forward(
        self,
        image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"],
        draws: Float[Tensor, "b s"] | None = None,
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 2 3"]]:
        """The changed pictures in 0..1, and their θ.

        Args:
            image: uint8, or floating point in 0..1.
            draws: numbers in [0, 1), `slots` for each picture; not needed without noise.
        """
        image = as_float(image)
        theta = self.locate(image, draws)
        return warp(image, theta, self.padding), theta

    def locate(
        self, image: Float[Tensor, "b 3 h w"], draws: Float[Tensor, "b s"] | None = None
    ) -> Float[Tensor, "b 2 3"]:
        """θ for each picture."""
        hidden = self.hidden(self.layers(2 * image - 1))
        if self.noise is not None:
            if draws is None or draws.shape[1] != self.slots:
                raise ValueError(f"this generator has a noise input: {self.slots} numbers are needed for each picture.")
            hidden = hidden + self.noise(2 * draws - 1)
        hidden = F.relu(hidden).float()
        with torch.autocast(image.device.type, enabled=False):  # bfloat16 knows 1 and 1.008, but nothing in between
            return self.affine(self.head(hidden))

    def draws(self, seed: int, copy: int, index: Int[Tensor, " b"]) -> Float[Tensor, "b s"]:
        """Random numbers for one more copy of some pictures."""
        return uniform(seed, copy, index, self.slots)

    def apply_to(self, image: Float[Tensor, "b c h w"], theta: Float[Tensor, "b 2 3"]) -> Float[Tensor, "b c h w"]:
        """θ, found on a small copy of a picture, applied to the picture itself."""
        return warp(image, theta, self.padding)

    def in_words(self, theta: Float[Tensor, "b 2 3"]) -> dict[str, Float[Tensor, " b"]]:
        """θ as rotation, scale, shear and shift: see `Affine`."""
        return split(theta)._asdict()


class Generated(nn.Module):
    """A trained generator as an augmentation: what `augment` of a classifier wants.

    Args:
        generator: meant to be taken over from an earlier run and frozen.
        share: of the pictures that are changed, drawn for each picture; the others stay as they are. 1 is the source's.

    Attributes:
        slots: random numbers that it wants for each picture.

    Raises:
        ValueError: a share outside 0..1.
    """

    def __init__(self, generator: SpatialTransformer, share: float) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"augment.share={share} must be above 0 and at most 1.")
        self.generator, self.share = generator, share
        self.slots = 1 + generator.slots

    def forward(
        self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"], draws: Float[Tensor, "b s"]
    ) -> Float[Tensor, "b 3 h w"]:
        """The pictures in 0..1, some of them changed."""
        image = as_float(image)
        changed, _ = self.generator(image, draws[:, 1:])
        return torch.where(draws[:, 0, None, None, None] < self.share, changed, image)
