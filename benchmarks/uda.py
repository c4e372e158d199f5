"""A UDA step over the sum of its passes: labelled photos, clean and changed unlabelled ones, batch for batch.

`passes` is the floor: a forward pass without gradients of U photos, and forward, backward and optimiser's step of B + U
photos. `UDA` is the whole technique: changes of the photos, draws, targets, mask and losses, by torchvision's
RandAugment photo by photo, or by this house's views of a whole batch. `supervised` is the plain step of B photos.
ResNet-18 at 64 px, B = U = 32. One thread, processor time, the sides in turn in one process, median of the rounds'
ratios and their range.

    python benchmarks/uda.py [--quick]
"""

import argparse

import torch
from rounds import Job, in_turn, show, timed
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from lightning_modules.classifier import Classifier
from lightning_modules.nn.backbones import Encoder
from lightning_modules.nn.policies import PerImage
from lightning_modules.nn.uda import UDA
from lightning_modules.nn.views import Views
from lightning_modules.optimisers import Optimiser

CLASSES = {"class": [str(number) for number in range(10)]}
SIDE = 64
VIEWS = {
    **{"side": SIDE, "area": (0.5, 1.0), "aspect": (0.75, 1.3333), "flip": 0.5, "jitter": 0.8, "brightness": 0.4},
    **{"contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grey": 0.2, "blur": 0.0, "kernel": 3, "sigma": (0.1, 1.0)},
}


class Sides:
    """The steps that are compared, on one batch."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        image = torch.randint(0, 256, (2 * size, SIDE, SIDE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        labels = {"class": torch.randint(0, 10, (size,))}
        self.batch = {"image": image[:size], "labels": labels, "index": torch.arange(size)}
        self.more = {"image": image[size:], "index": torch.arange(size), "position": torch.arange(size)}

    def classifier(self, strong: nn.Module | None) -> tuple[Classifier, torch.optim.Optimizer]:
        """One with consistency under some change, or without."""
        rates = {"name": "sgd", "lr": 1e-3, "weight_decay": 0.0, "encoder_lr_scale": 1.0, "schedule": "constant"}
        optimiser = Optimiser(**rates, warmup_epochs=0, decay=0.1, decay_epochs=1, momentum=0.9)
        uda = UDA(strong, 1.0, 0.8, 0.4, "none", 0) if strong is not None else None
        encoder = Encoder(self.name, "none")
        module = Classifier(encoder, CLASSES, None, 0.0, 0.0, None, 0, optimiser, uda=uda)
        module.progress = lambda: 0.5  # type: ignore[method-assign]
        return module, optimiser.build(module.named_parameters())

    def whole(self, strong: nn.Module | None) -> Job:
        """A step of the technique."""
        module, optimizer = self.classifier(strong)
        batch = self.batch if strong is None else {**self.batch, "unlabelled": self.more}
        return lambda: timed(lambda: descend(optimizer, module.step(batch, "train")["loss"]), 2)

    def passes(self) -> Job:
        """What no implementation can leave out."""
        module, optimizer = self.classifier(None)
        both = torch.cat([self.batch["image"], self.more["image"]])

        def work() -> None:
            with torch.no_grad():
                module(self.more["image"])
            descend(optimizer, F.cross_entropy(module(both)[: self.size], self.batch["labels"]["class"]))

        return lambda: timed(work, 2)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimiser's step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny network and few rounds: shows that it runs")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    sides = Sides("test_resnet" if quick else "resnet18", 8 if quick else 32)
    views = Views(**VIEWS)
    jobs = {
        "supervised": sides.whole(None),
        "passes": sides.passes(),
        "UDA, RandAugment": sides.whole(PerImage(v2.RandAugment())),
        "UDA, views": sides.whole(views),
    }
    taken = in_turn(jobs, 2 if quick else 7)
    show(taken, "UDA, RandAugment", "passes")
    show(taken, "UDA, views", "passes")
    show(taken, "UDA, RandAugment", "supervised")


if __name__ == "__main__":
    main()
