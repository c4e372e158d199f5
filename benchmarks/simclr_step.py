"""One SimCLR training step, ResNet-18 on 96 px, 64 photos: views, both passes, loss, backward and optimiser.

Claims: ours in bfloat16 is at least 1.8 x as fast as the loop of lightly's documentation (its SimCLRTransform on Pillow
images, one pass a view, its NTXentLoss, SGD, float32) where both have an allocator that keeps its memory, and at least
2 x in a process as it comes. That takes a CPU whose bfloat16 convolutions are faster than its float32 ones; by how much
is printed too. The network is the same on both sides, and both begin with decoded photos.

One thread, processor time, the sides in turn in one process, median of the rounds with their range.

    python benchmarks/simclr_step.py [--quick] [--allocator stock|kept]
"""

import itertools
from collections.abc import Callable
from functools import partial

import timm
import torch
from memory import arguments
from PIL import Image
from rounds import in_turn, show, timed
from torch import nn
from torch.nn import functional as F
from two_views import LIGHTLYS, lightlys, photos, pixels

from engine.devices import computes_bf16
from lightning_modules.nn.backbones import Encoder
from lightning_modules.nn.views import Views
from lightning_modules.optimisers import Optimiser
from lightning_modules.simclr import SimCLR

Step = Callable[[], object]
CONVOLUTIONS = {"conv float32": torch.float32, "conv bfloat16": torch.bfloat16}


def usual(pictures: list[Image.Image]) -> Step:
    """The loop of lightly's documentation."""
    views = lightlys(pictures)
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    net = nn.Sequential(timm.create_model("resnet18", num_classes=0), SimCLRProjectionHead(512, 512, 128))
    criterion, optimizer = NTXentLoss(), torch.optim.SGD(net.parameters(), lr=0.06)

    def step() -> None:
        first, second = views()
        loss = criterion(net(first), net(second))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(pictures: list[Image.Image], bfloat16: bool) -> Step:
    """The technique's own step and optimiser, as the Trainer calls them."""
    optimiser = Optimiser("sgd", 0.06, 0.0, 1.0, "constant", 0, 0.1, 1, 0.0)
    precision = "bfloat16" if bfloat16 else "float32"
    encoder = Encoder("resnet18", "none")
    module = SimCLR(
        encoder, Views(**LIGHTLYS), [512, 128], True, 0.5, precision, True, None, None, 1, 0, optimiser
    ).train()  # fmt: skip
    optimizer, image = optimiser.build(module.named_parameters(), fused=True), pixels(pictures)
    places = (torch.arange(len(image)) + len(image) * number for number in itertools.count())

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = module.step({"image": image, "index": next(places)}, "train")["loss"]
        loss.backward()
        optimizer.step()

    return step


def convolution(dtype: torch.dtype, images: int) -> Step:
    """Forward and backward of the middle of the network, as channels last."""
    data = torch.randn(images, 128, 12, 12).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(128, 128, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    return lambda: torch.autograd.grad(F.conv2d(data, weight, padding=1).sum(), [data, weight])


def compare(count: int, rounds: int, stock: bool) -> None:
    """Steps of all sides, and what the convolutions do."""
    pictures = photos(count)
    sides = {"lightly": usual(pictures), "float32": ours(pictures, False)}
    if computes_bf16("cpu"):
        sides["bfloat16"] = ours(pictures, True)
    else:
        print("  this CPU has no bfloat16 products: their goals do not apply")
    sides |= {name: convolution(dtype, count) for name, dtype in CONVOLUTIONS.items()}
    taken = in_turn({name: partial(timed, step) for name, step in sides.items()}, rounds)
    for name in [each for each in ("float32", "bfloat16") if each in taken]:
        show(taken, "lightly", name, (">= 2" if stock else ">= 1.8") if name == "bfloat16" else "")
    show(taken, *CONVOLUTIONS)


def main() -> None:
    args = arguments(__doc__, "few photos")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    count, rounds = (4, 1) if args.quick else (64, 7)
    print(f"\n{args.allocator} allocator, {count} photos, {rounds} rounds", flush=True)
    compare(count, rounds, args.allocator == "stock")


if __name__ == "__main__":
    main()
