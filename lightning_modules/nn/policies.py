"""torchvision's own augmentations in the place where a learned one would stand."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn


class PerImage(nn.Module):
    """A random transform of torchvision, applied to each picture by itself: what `augment` of a classifier wants.

    torchvision draws the parameters of `RandAugment` and its like once for a whole batch, and from torch's one random
    state. Here every picture gets parameters of its own, from a state that its draw decides and that is put back
    afterwards: the same on any number of processes, and after a resume.

    Reference: Cubuk et al., RandAugment, 2020; Müller and Hutter, TrivialAugment, 2021.

    Args:
        transform: takes and gives a uint8 picture (3, H, W), such as `torchvision.transforms.v2.RandAugment`.

    Attributes:
        slots: random numbers that it wants for each picture.
    """

    slots = 1

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(
        self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"], draws: Float[Tensor, "b 1"]
    ) -> Float[Tensor, "b 3 h w"]:
        """The changed pictures in 0..1."""
        pixels = (image * 255).round().to(torch.uint8) if image.is_floating_point() else image
        state = torch.get_rng_state()
        try:
            changed = [self.change(*pair) for pair in zip(pixels, draws[:, 0].tolist(), strict=True)]
        finally:
            torch.set_rng_state(state)
        return torch.stack(changed).float() / 255

    def change(self, pixels: UInt8[Tensor, "3 h w"], draw: float) -> UInt8[Tensor, "3 h w"]:
        """One picture, changed as its draw in [0, 1) says."""
        torch.default_generator.manual_seed(int(draw * 2**24))  # not torch.manual_seed, which would reach the GPUs' too
        changed: Tensor = self.transform(pixels)
        return changed
