"""A training step of the classifier on CIFAR-10 (ResNet-18, 3 x 3 stem, batch 64): ours against the usual loop.

Claims: at least 1.8 x as fast in bfloat16 and 1.12 x in float32, and in bfloat16 at least 70 % of what one convolution
reaches alone. The usual loop: PIL images and torchvision's v1 transforms in torch's DataLoader, float32 in planes, SGD,
`loss.item()`. Ours: arrays changed in whole batches, pixels side by side, the technique's own step with its fused SGD;
every loss is read, too. Same images, same kind of random changes, same network. One thread, processor time, the sides
in turn in one process, median of the rounds' ratios and their range.

    python benchmarks/cifar_step.py [--quick]
"""

import argparse
import itertools
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from rounds import Job, in_turn, show, timed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from datamodules.cifar10 import CIFAR10
from lightning_modules.classifier import Classifier
from lightning_modules.nn.backbones import Encoder, shrink_stem
from lightning_modules.optimisers import Optimiser

BATCH, SIDE = 64, 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
FLOPS = 3.33e9  # of an image: forward, and backward at twice that
AUGMENT = {"pad": 4, "border": "zero", "flip": 0.5, "cutout": 0}
SETTINGS = {
    **{"name": "sgd", "lr": 0.01, "weight_decay": 5e-4, "encoder_lr_scale": 1.0, "schedule": "constant"},
    **{"warmup_epochs": 0, "decay": 0.1, "decay_epochs": 30, "momentum": 0.9},
}


class Pictures(Dataset[tuple[Tensor, int]]):
    """One picture at a time, as torchvision's CIFAR10 gives it."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self.pixels, self.labels = pixels, labels.tolist()
        tail = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        head = [transforms.RandomCrop(SIDE, padding=4), transforms.RandomHorizontalFlip()]
        self.change = transforms.Compose([*head, *tail])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.change(Image.fromarray(self.pixels[index])), self.labels[index]


def usual(data: CIFAR10, name: str, steps: int) -> Job:
    """The loop that tutorials have."""
    split = data.splits["train"]
    pictures = Pictures(split.blocks[0].pixels[split.rows], split.labels["class"])
    loader = DataLoader(pictures, BATCH, shuffle=True, drop_last=True)
    network = timm.create_model(name, num_classes=10)
    if name == "resnet18":
        shrink_stem(network, name)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    batches = endless(loader)

    def step() -> None:
        image, label = next(batches)
        loss = nn.functional.cross_entropy(network(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return lambda: timed(step, steps)


def ours(data: CIFAR10, name: str, steps: int, bfloat16: bool) -> Job:
    """The technique's own step on the data module's own batches."""
    stem = "small" if name == "resnet18" else "default"
    encoder, settings = Encoder(name, "none", MEAN, STD, stem), Optimiser(**SETTINGS)  # type: ignore[arg-type]
    module = Classifier(encoder, data.facts["classes"], None, 0.0, 0.0, None, 0, settings)
    optimizer = settings.build(module.named_parameters())
    batches = endless(data.train_dataloader())

    def step() -> None:
        batch = data.on_after_batch_transfer(next(batches), 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = module.step(batch, "train")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return lambda: timed(step, steps)


def endless(loader: DataLoader) -> Iterator:
    """Epoch after epoch."""
    return itertools.chain.from_iterable(itertools.repeat(loader))


def convolution(channels: int) -> Job:
    """One 3 x 3 convolution in bfloat16, forward and backward: seconds for as many operations as an image's step."""
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    image = torch.randn(BATCH, channels, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    operations = 3 * 2 * BATCH * 64 * 9 * channels**2

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            layer(image).sum().backward()

    return lambda: timed(work, 5) * FLOPS / operations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny network: shows that it runs, measures nothing")
    quick = parser.parse_args().quick
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, steps, rounds = ("test_resnet", 1, 1) if quick else ("resnet18", 2, 7)
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    with tempfile.TemporaryDirectory() as folder:
        CIFAR10.draw_sample(Path(folder))
        data = CIFAR10(folder, BATCH, 0, 1, "drop", 0.1, augment=AUGMENT)
        data.setup()
        sides = {"usual": usual(data, name, steps), "ours float32": ours(data, name, steps, False)}
        if fast:
            sides |= {"ours bfloat16": ours(data, name, steps, True), "convolution": convolution(16 if quick else 256)}
        taken = in_turn(sides, rounds)
    print(f"{name}, batch of {BATCH}, {rounds} rounds of {steps} steps")
    show(taken, "usual", "ours float32", ">= 1.12")
    if not fast:
        print("  this CPU has no bfloat16 products: the other goals do not apply")
        return
    show(taken, "usual", "ours bfloat16", ">= 1.8")
    if quick:
        return
    taken["convolutions alone"] = [BATCH * seconds for seconds in taken.pop("convolution")]
    show(taken, "convolutions alone", "ours bfloat16", ">= 0.7")


if __name__ == "__main__":
    main()
