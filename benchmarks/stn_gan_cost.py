"""What STN-GAN's second and third stages cost beside a plain training step of the classifier, and so a batch of each.

`generate`: the discriminator's and the generator's step, through the frozen classifier. `generate, no D`: without the
discriminator. `fine-tune`: the classifier's step on what a frozen generator makes. `RandAugment`: its step on what
torchvision makes, picture by picture. ResNet-18 with a 3 x 3 stem, batch 64 of 32 x 32 pictures, in bfloat16 where the
CPU has such products. No goal: a ratio below 1 is cheaper than the plain step. One thread, processor time, the sides in
turn in one process, median of the rounds' ratios and their range.

    python benchmarks/stn_gan_cost.py [--quick]
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from rounds import Job, in_turn, show, timed
from torch import nn
from torchvision.transforms import v2

from lightning_modules.classifier import Classifier
from lightning_modules.nn.backbones import Encoder
from lightning_modules.nn.gan import Discriminator, Objective
from lightning_modules.nn.policies import PerImage
from lightning_modules.nn.spatial import Generated, SpatialTransformer
from lightning_modules.optimisers import Optimiser
from lightning_modules.stn_gan import STNGAN

CLASSES = {"class": [str(number) for number in range(10)]}
SETTINGS = {
    **{"lr": 1e-4, "weight_decay": 0.0, "encoder_lr_scale": 1.0, "schedule": "constant"},
    **{"warmup_epochs": 0, "decay": 0.1, "decay_epochs": 30, "momentum": 0.0},
}
OBJECTIVE = {
    **{"entropy_weight": 2.0, "entropy_form": "log", "game": "minimax", "budget": None, "distance": None},
    **{"distance_weight": 1.0, "guard": None, "diversity": 0.0},
}
Work = Callable[[], object]


class Sides:
    """The steps that are compared, on one batch.

    Args:
        name: timm's name of the classifier's encoder.
        bfloat16: whether to compute in it.
    """

    def __init__(self, name: str, bfloat16: bool) -> None:
        self.name, self.bfloat16 = name, bfloat16
        image = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        labels = {"class": torch.randint(0, 10, (64,))}
        self.batch = {"image": image, "labels": labels, "index": torch.arange(64)}

    def encoder(self) -> Encoder:
        return Encoder(self.name, "none", stem="small" if self.name == "resnet18" else "default")

    def settings(self, name: str) -> Optimiser:
        return Optimiser(name=name, **SETTINGS)  # type: ignore[arg-type]

    def descent(self, part: nn.Module, name: str, loss: Callable[[], Any]) -> Work:
        """One optimiser's step on one loss."""
        optimizer = self.settings(name).build(part.named_parameters())

        def work() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
                value = loss()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

        return work

    def classify(self, augment: nn.Module | None) -> Job:
        """The classifier's step, with something that changes its pictures or nothing."""
        module = Classifier(self.encoder(), CLASSES, None, 0.0, 0.0, augment, 0, self.settings("sgd"))
        if augment is not None:
            augment.requires_grad_(False)
        work = self.descent(module, "sgd", lambda: module.step(self.batch, "train")["loss"])
        return lambda: timed(work)

    def generate(self, rival: bool) -> Job:
        """The generator's step, after the discriminator's if there is one."""
        discriminator = Discriminator(32) if rival else None
        module = STNGAN(
            self.encoder(), CLASSES, None, transformer(), discriminator, Objective(**OBJECTIVE),  # type: ignore[arg-type]
            None, 0, self.settings("adam"), self.settings("sgd"),
        )  # fmt: skip
        for part in (module.encoder, module.head):
            part.requires_grad_(False).eval()
        works = [self.descent(module.generator, "adam", lambda: module.step(self.batch, "train")["loss"])]
        if discriminator is not None:
            works.insert(0, self.descent(discriminator, "sgd", lambda: module.telling_apart(self.batch)))
        return lambda: timed(lambda: [work() for work in works])


def transformer() -> SpatialTransformer:
    return SpatialTransformer(width=32, noise=0, ranges=None, start=0.1, padding="zeros")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny network: shows that it runs, measures nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sides = Sides("test_resnet" if quick else "resnet18", torch.ops.mkldnn._is_mkldnn_bf16_supported())
    jobs = {
        "classify": sides.classify(None), "generate": sides.generate(True), "generate, no D": sides.generate(False),
        "fine-tune": sides.classify(Generated(transformer(), 1.0)),
        "RandAugment": sides.classify(PerImage(v2.RandAugment())),
    }  # fmt: skip
    rounds = 1 if quick else 7
    taken = in_turn(jobs, rounds)
    print(f"{sides.name}, batch of 64, {'bfloat16' if sides.bfloat16 else 'float32'}, {rounds} rounds")
    for name in list(jobs)[1:]:
        show(taken, name, "classify")


if __name__ == "__main__":
    main()
