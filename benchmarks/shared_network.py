"""One shared network for three tasks against three networks: parameters, training step and inference.

Claim: the shared network costs about a third. The source's three tasks, random weights, uint8 photos; a training step
is forward, backward and a fused AdamW, with the trunk frozen (the source's recipe) and with everything trained.
One thread, processor time, the variants in turn in one process, the median of the rounds' ratios and their range.

    python benchmarks/shared_network.py [--quick]
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rounds import in_turn, show, timed

from callbacks.freeze import freeze
from lightning_modules.fashion_mtl import FashionMTL
from lightning_modules.nn.backbones import Encoder
from lightning_modules.optimisers import Optimiser

CLASSES = {"Daily": 7, "Gender": 6, "Embellishment": 3}
Job = Callable[[], object]


def technique(name: str, shared: bool) -> FashionMTL:
    optimiser = Optimiser("adamw", 1e-3, 0.01, 1.0, "constant", warmup_epochs=0, decay=1, decay_epochs=1, momentum=0)
    classes = {task: [f"{task} {i}" for i in range(size)] for task, size in CLASSES.items()}
    return FashionMTL(Encoder(name, "none"), classes, shared, None, 0.0, 0.0, optimiser)


def draw(count: int, size: int) -> dict[str, Any]:
    labels = {task: torch.randint(classes, (count,)) for task, classes in CLASSES.items()}
    image = torch.randint(256, (count, 3, size, size), dtype=torch.uint8)
    return {"image": image, "labels": labels, "index": torch.arange(count)}


def training(module: FashionMTL, batch: dict[str, Any]) -> Job:
    optimizer = module.optimiser.build(module.named_parameters())

    def step() -> None:
        optimizer.zero_grad()
        module.step(batch, "train")["loss"].backward()
        optimizer.step()

    return step


def jobs(name: str, shared: bool, batch: dict[str, Any]) -> dict[str, Job]:
    """What is timed, by name."""
    tuned, frozen, used = (technique(name, shared) for _ in range(3))
    freeze(frozen.encoder)
    used.eval()
    return {
        "training step, all layers": training(tuned, batch),
        "training step, trunk frozen": training(frozen, batch),
        "inference": lambda: used.answers(batch, 1),
    }


def compare(name: str, count: int, size: int, rounds: int, repeats: int) -> None:
    """Print the ratios of one backbone."""
    batch = draw(count, size)
    sizes = [sum(p.numel() for p in technique(name, shared).parameters()) / 1e6 for shared in (True, False)]
    print(f"{name}, batch {count}, {size} px ({rounds} rounds of {repeats})")
    print(f"  {'parameters':28} {sizes[1] / sizes[0]:.2f} x   {sizes[0]:.2f} M against {sizes[1]:.2f} M")
    one, three = jobs(name, True, batch), jobs(name, False, batch)
    for what in one:
        print(f"  {what}")
        sides = {"three": partial(timed, three[what], repeats), "one": partial(timed, one[what], repeats)}
        show(in_turn(sides, rounds), "three", "one")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small network: shows that it runs, measures nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, count, size in (("resnet18", 16, 128), ("resnet50", 8, 224), ("tf_efficientnet_lite0", 16, 128)):
        if quick and name != "resnet18":
            continue
        compare(name, 2 if quick else count, 32 if quick else size, 1 if quick else 7, 1 if quick else 2)


if __name__ == "__main__":
    main()
