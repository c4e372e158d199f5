"""Two random views of each photo, as SimCLR wants them: a batch at a time, and one by one with lightly's transform.

Claim: from photos of 96 px to two float batches of 96 px, ours is at least 3.5 x as fast as lightly's SimCLRTransform
on Pillow images. Both crop, mirror, jitter four colours in a random order, take the colour away and blur, with the same
probabilities and strengths; ours equals torchvision's operations to 1e-5 (tests/test_views.py), lightly's blur is
Pillow's. Decoding and normalising are no part of it.

One thread, processor time, both in turn in one process, median of the rounds with their range.

    python benchmarks/two_views.py [--quick]
"""

import argparse
import itertools
import os
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from rounds import in_turn, show, timed
from torch import Tensor

from lightning_modules.nn.keyed import uniform
from lightning_modules.nn.views import Views

SIDE = 96
LIGHTLYS = {
    "side": SIDE, "area": (0.08, 1.0), "aspect": (3 / 4, 4 / 3), "flip": 0.5, "jitter": 0.8, "brightness": 0.8,
    "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "grey": 0.2, "blur": 0.5, "kernel": 9, "sigma": (0.1, 2.0),
}  # fmt: skip
Pair = Callable[[], tuple[Tensor, Tensor]]


def photos(count: int) -> list[Image.Image]:
    """Pictures with some detail in them."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for each in coarse]


def pixels(pictures: list[Image.Image]) -> Tensor:
    """The same as a batch (B, 3, H, W) of bytes."""
    return torch.from_numpy(np.stack([np.asarray(each) for each in pictures])).permute(0, 3, 1, 2).contiguous()


def lightlys(pictures: list[Image.Image]) -> Pair:
    """The usual way: lightly's transform on each picture, and its collation."""
    os.environ["LIGHTLY_DID_VERSION_CHECK"] = "True"
    try:
        from lightly.transforms import SimCLRTransform
    except ImportError:
        sys.exit("lightly is not installed: without it there is no goal to measure (pip install lightly).")
    transform = SimCLRTransform(input_size=SIDE, normalize=None)

    def views() -> tuple[Tensor, Tensor]:
        first, second = zip(*(transform(each) for each in pictures), strict=True)
        return torch.stack(first), torch.stack(second)

    return views


def ours(images: Tensor) -> Pair:
    """Numbers and views of the batch, of another epoch each time."""
    module, index, epochs = Views(**LIGHTLYS), torch.arange(len(images)), itertools.count()

    def views() -> tuple[Tensor, Tensor]:
        epoch = next(epochs)
        draws = [uniform(0, epoch, 2 * index + view, module.slots) for view in (0, 1)]
        first, second = (module(images, each) for each in draws)
        return first, second

    return views


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few photos: shows that it runs, measures nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    count, rounds = (8, 1) if quick else (128, 15)
    pictures = photos(count)
    sides = {"lightly": lightlys(pictures), "ours": ours(pixels(pictures))}
    print(f"two views of {count} photos of {SIDE} px, {rounds} rounds")
    show(in_turn({name: partial(timed, views) for name, views in sides.items()}, rounds), *sides, ">= 3.5")


if __name__ == "__main__":
    main()
