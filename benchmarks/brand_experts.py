"""N experts: a training step of N networks, in bfloat16, of N heads on a frozen trunk; one image through all of them.

Claims: bfloat16 at least 1.4 times as fast as float32 where the processor computes in it; N heads on a frozen trunk at
least 3 times as fast as N networks; and whether stacking the experts' weights (`torch.func.vmap`) pays when one image
is answered. ResNet-18, random weights, a fused AdamW, uint8 photos. One thread, processor time, the sides in turn in
one process, the median of the rounds' ratios and their range.

    python benchmarks/brand_experts.py [--quick]
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial

import torch
from rounds import in_turn, show, timed
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from callbacks.freeze import freeze
from engine.devices import computes_bf16
from lightning_modules.nn.backbones import Encoder

PRODUCTS = 16
Job = Callable[[], object]


def expert(trunk: Encoder | None = None) -> nn.Sequential:
    trunk = trunk or Encoder("resnet18", "none")
    return nn.Sequential(trunk, nn.Linear(trunk.features, PRODUCTS))


def training(experts: list[nn.Sequential], images: list[Tensor], precision: torch.dtype) -> Job:
    """A step of every expert, each on its own photos."""
    parameters = [[p for p in each.parameters() if p.requires_grad] for each in experts]
    optimisers = [torch.optim.AdamW(own, 1e-3, fused=True) for own in parameters]
    labels = torch.arange(len(images[0])) % PRODUCTS

    def step() -> None:
        for each, optimiser, image in zip(experts, optimisers, images, strict=True):
            optimiser.zero_grad()
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                loss = nn.functional.cross_entropy(each(image), labels)
            loss.backward()
            optimiser.step()

    return step


def answering(experts: list[nn.Sequential], image: Tensor) -> dict[str, Job]:
    """One image through all experts: one network after the other, or all as one with a dimension more."""
    networks = [nn.Sequential(each[0].model, each[1]).eval() for each in experts]
    pixels = experts[0][0].normalise(image)
    stacked, buffers = stack_module_state(networks)
    skeleton = copy.deepcopy(networks[0]).to("meta")

    def one(weights: dict[str, Tensor], constants: dict[str, Tensor]) -> Tensor:
        return functional_call(skeleton, (weights, constants), (pixels,))

    @torch.no_grad()
    def in_turn_() -> list[Tensor]:
        return [network(pixels) for network in networks]

    @torch.no_grad()
    def at_once() -> Tensor:
        return torch.func.vmap(one)(stacked, buffers)

    return {"one by one": in_turn_, "one pass": at_once}


def compare(count: int, size: int, side: int, rounds: int) -> None:
    """Print the ratios for `count` experts, batches of `size` photos of `side` pixels."""
    images = [torch.randint(256, (size, 3, side, side), dtype=torch.uint8) for _ in range(count)]
    shared = Encoder("resnet18", "none")
    freeze(shared)
    print(f"{count} experts, batch {size}, {side} px ({rounds} rounds)")
    steps = {
        "networks": training([expert() for _ in range(count)], images, torch.float32),
        "bfloat16": training([expert() for _ in range(count)], images, torch.bfloat16),
        "heads": training([expert(shared) for _ in range(count)], images, torch.float32),
    }
    taken = in_turn({name: partial(timed, job) for name, job in steps.items()}, rounds)
    show(taken, "networks", "heads", "3")
    show(taken, "networks", "bfloat16", "1.4" if computes_bf16("cpu") else "none: no bfloat16 in this processor")
    sides = answering([expert().eval() for _ in range(count)], images[0][:1])
    show(in_turn({name: partial(timed, job, 2) for name, job in sides.items()}, rounds), "one by one", "one pass")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small experts: shows that it runs, measures nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for count, size, side in ((2, 4, 32),) if quick else ((4, 32, 64), (8, 32, 64)):
        compare(count, size, side, 1 if quick else 5)


if __name__ == "__main__":
    main()
