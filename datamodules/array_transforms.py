"""Random changes of small training images, a whole batch at once, where the batch is: pad and crop, flip, cutout.

The loader draws a few whole numbers for each sample, the device applies them: one gather of pixels for crop and flip
together. The numbers are a function of seed, epoch and place in the epoch's order alone, so that they are the same for
any number of processes and after a resume.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from datamodules.samplers import Draw
from datamodules.transforms import FILL

BORDERS = ("zero", "reflect")
SLOTS = 5  # numbers that a sample draws: down, right, mirror, and the cutout's row and column
GOLDEN, FIRST, SECOND = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)


def uniform(keys: NDArray[np.uint64], slots: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), independent between keys and between slots: a hash, where generators would be slow to make.

    Reference: Steele, Lea and Flood, 2014 (SplitMix).

    Args:
        keys: (n, k), each row a key of k whole numbers.
        slots: numbers for each key.

    Returns:
        (n, slots).
    """
    state = np.zeros((len(keys), 1), np.uint64)
    for part in (*keys.T[:, :, None], np.arange(slots, dtype=np.uint64)):
        state = (state ^ part) + GOLDEN
        state = (state ^ (state >> np.uint64(30))) * FIRST
        state = (state ^ (state >> np.uint64(27))) * SECOND
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class BatchAugment:
    """Pad and crop, flip and cutout of training images; the settings that are left out are off.

    Alternating flip mirrors a random half of the images in the first epoch and in each later one those that the epoch
    before did not: two epochs in a row then show both sides of every image.

    Reference: DeVries and Taylor, 2017 (cutout); Jordan, 2024 (alternating flip).

    Args:
        pad: pixels added on each side; then a random window of the image's size is taken.
        border: what the added pixels are: `zero` (black) or `reflect`.
        flip: probability of a mirror image, or `alternate`.
        cutout: side of a grey square at a random place, in pixels; it may reach over the edge.
    """

    pad: int = 0
    border: str = "zero"
    flip: float | str = 0.0
    cutout: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None, side: int) -> Self:
        """From a mapping in YAML, for images of `side` x `side` pixels.

        Raises:
            ValueError: an unknown name, or a value outside its range.
        """
        known = asdict(cls())
        for name, value in (settings or {}).items():
            if name not in known:
                raise ValueError(f"augment has no setting {name!r}; it has {', '.join(known)}")
            if name in ("pad", "cutout") and (type(value) is not int or not 0 <= value < side):
                raise ValueError(f"augment.{name}={value!r} is not a whole number of pixels from 0 to {side - 1}")
        augment = cls(**(settings or {}))
        if augment.border not in BORDERS:
            raise ValueError(f"augment.border={augment.border!r} is not one of {', '.join(BORDERS)}")
        share = augment.flip
        if share != "alternate" and (type(share) not in (int, float) or not 0 <= float(share) <= 1):
            raise ValueError(f"augment.flip={share!r} is neither a probability from 0 to 1 nor alternate")
        return augment

    @property
    def is_random(self) -> bool:
        """Whether it changes anything."""
        return bool(self.pad or self.flip or self.cutout)

    def draw(self, items: Sequence[Draw], side: int) -> Tensor:
        """The numbers (B, 5) that say what happens to each sample: down, right, mirror, cutout's row and column."""
        keys = np.array([item.key for item in items], dtype=np.uint64).reshape(-1, 3)
        chances = uniform(keys, SLOTS)
        sizes = np.array([2 * self.pad + 1, 2 * self.pad + 1, 0, side, side])
        draws = (chances * sizes).astype(np.int64)
        if self.flip == "alternate":
            own = np.array([item.sample for item in items], dtype=np.uint64)
            first = uniform(np.stack([keys[:, 0], own], axis=1), 1)[:, 0] < 0.5
            draws[:, 2] = first ^ (keys[:, 1] % np.uint64(2) == 1)
        else:
            draws[:, 2] = chances[:, 2] < float(self.flip)
        return torch.from_numpy(draws)

    def __call__(self, image: Tensor, draws: Tensor) -> Tensor:
        """The images (B, 3, H, W), uint8, each changed as its row of `draws` (B, 5) says; on any device."""
        batch, _, height, width = image.shape
        down, right, mirror, *hole = draws.unsqueeze(2).unbind(1)
        rows = torch.arange(height, device=image.device) + down
        columns = torch.arange(width, device=image.device)
        columns = torch.where(mirror > 0, width - 1 - columns, columns) + right
        pixels = image.permute(0, 2, 3, 1)
        if self.border == "zero":
            pixels = F.pad(pixels, (0, 0, *[self.pad] * 4))
        else:
            rows, columns = _reflected(rows - self.pad, height), _reflected(columns - self.pad, width)
        # One index for both directions, and 3 channels side by side: three times as fast as an index for each.
        rows += torch.arange(batch, device=image.device)[:, None] * pixels.shape[1]
        places = rows[:, :, None] * pixels.shape[2] + columns[:, None, :]
        source = pixels.reshape(-1, 3)
        if self.cutout:
            within = [_near(at, size, self.cutout) for at, size in zip(hole, (height, width), strict=True)]
            places = torch.where(within[0][:, :, None] & within[1][:, None, :], len(source), places)
            source = torch.cat([source, source.new_full((1, 3), FILL)])
        return source.index_select(0, places.view(-1)).view(batch, height, width, 3).permute(0, 3, 1, 2)


def _reflected(places: Tensor, size: int) -> Tensor:
    """Places outside of 0 ... size - 1 mirrored at the first and the last."""
    inside = places.abs()
    return torch.minimum(inside, 2 * (size - 1) - inside)


def _near(middle: Tensor, size: int, side: int) -> Tensor:
    """(B, size): which places a square of `side` pixels around `middle` (B, 1) covers."""
    first = middle - side // 2
    places = torch.arange(size, device=middle.device)
    return (places >= first) & (places < first + side)
