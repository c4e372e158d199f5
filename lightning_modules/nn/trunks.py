"""Several networks in place of one: each sees the image in its own size, and their features lie side by side."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.nn import chain


class Trunks(nn.Module):
    """Encoders side by side.

    Args:
        members: {"encoder": images to features, "side": of the images that it was trained on, in pixels} each.

    Attributes:
        features: the length of all feature vectors together.
        depth: 0; these networks are not split, see `Encoder`.
    """

    depth = 0

    def __init__(self, members: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.members = nn.ModuleList([member["encoder"] for member in members])
        self.sides = [int(member["side"]) for member in members]
        self.widths = [int(member["encoder"].features) for member in members]
        self.features = sum(self.widths)

    def forward(self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """All features of images, in the members' order; an image of another size is resized for those that want it."""
        sizes = {side: resized(image, side) for side in dict.fromkeys(self.sides)}
        return torch.cat([each(sizes[side]) for each, side in zip(self.members, self.sides, strict=True)], 1)

    def parts(self, features: Float[Tensor, "b d"]) -> Sequence[Float[Tensor, "b _"]]:
        """Each member's features."""
        return torch.split(features, self.widths, 1)

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode for a while; what trains goes on training afterwards."""
        return chain.evaluating(self)


def resized(image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"], side: int) -> Tensor:
    """Square images of another side, as floats in 0..1; those that fit stay as they are."""
    if image.shape[-1] == side:
        return image
    pixels = image if image.is_floating_point() else image.float() / 255
    return F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
