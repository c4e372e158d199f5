"""SimCLR's loss with its gradient, against lightly's NTXentLoss: time and memory by the number of views.

Claims, for embeddings of 128 numbers: in float32 at least 2.5 x as fast at 2,048 views; with bfloat16 products at least
5 x at 8,192 views, with at most 1 / 20 of the memory. Value and gradient are checked to be the same beforehand.

Both sides in one process, once as it is (`stock`) and once with glibc keeping freed memory (`kept`): page faults cost
lightly much more. The goals are for `stock`, which is how people run it. One thread, processor time, the sides in turn,
median of the rounds with their range. Memory is the growth of the peak resident set, measured in `stock` (Linux).

    python benchmarks/nt_xent.py [--quick] [--allocator stock|kept]
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from memory import arguments, growth
from rounds import in_turn, show, timed
from torch import Tensor
from torch.testing import assert_close

from engine.devices import computes_bf16
from lightning_modules.nn.nt_xent import nt_xent

TEMPERATURE, WIDTH = 0.5, 128
Loss = Callable[[Tensor, Tensor], Tensor]


def losses() -> dict[str, Loss]:
    """Each side's loss of the two views' embeddings."""
    os.environ["LIGHTLY_DID_VERSION_CHECK"] = "True"
    try:
        from lightly.loss import NTXentLoss
    except ImportError:
        sys.exit("lightly is not installed: without it there is no goal to measure (pip install lightly).")
    sides: dict[str, Loss] = {"lightly": NTXentLoss(TEMPERATURE), "float32": partial(nt_xent, temperature=TEMPERATURE)}
    if computes_bf16("cpu"):
        sides["bfloat16"] = partial(nt_xent, temperature=TEMPERATURE, precision="bfloat16")
    return sides


def embeddings(views: int) -> tuple[Tensor, Tensor]:
    first = torch.randn(views // 2, WIDTH)
    return first.requires_grad_(), (first.detach() + torch.randn(views // 2, WIDTH)).requires_grad_()


def step(loss: Loss, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The value, and the gradient of both views."""
    value = loss(*pair)
    return value.detach(), torch.cat(torch.autograd.grad(value, pair))


def check(sides: dict[str, Loss], pair: tuple[Tensor, Tensor]) -> None:
    """All sides compute the same; bfloat16 to a hundredth of the gradient's length."""
    value, gradient = step(sides["lightly"], pair)
    for name, loss in sides.items():
        found, theirs = step(loss, pair)
        assert_close(found, value, rtol=1e-3 if name == "bfloat16" else 1e-5, atol=0)
        assert (theirs - gradient).norm() < (1e-2 if name == "bfloat16" else 1e-4) * gradient.norm()


def compare(sides: dict[str, Loss], views: int, rounds: int, stock: bool) -> None:
    """Times, and where it can be measured the memory, of one size."""
    pair = embeddings(views)
    check(sides, pair)
    jobs = {name: partial(step, loss, pair) for name, loss in sides.items()}
    taken = in_turn({name: partial(timed, job) for name, job in jobs.items()}, rounds)
    goals = {(2048, "float32"): ">= 2.5", (8192, "bfloat16"): ">= 5"} if stock else {}
    print(f"{views} views, {rounds} rounds")
    for name in list(sides)[1:]:
        show(taken, "lightly", name, goals.get((views, name), ""))
    if stock and views >= 2048 and Path("/proc/self/clear_refs").exists():
        sizes = {name: growth(job) for name, job in jobs.items()}
        shares = [f"{name} {size / 1e6:.0f} MB (1 / {sizes['lightly'] / size:.0f})" for name, size in sizes.items()]
        print(f"  memory: {', '.join(shares)}   {'goal <= 1 / 20' if views == 8192 else ''}")


def main() -> None:
    args = arguments(__doc__, "few views")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sides = losses()
    print(f"\n{args.allocator} allocator", flush=True)
    if "bfloat16" not in sides:
        print("  this CPU has no bfloat16 products: their goals do not apply")
    for views, rounds in ((64, 1),) if args.quick else ((512, 25), (2048, 11), (8192, 5)):
        compare(sides, views, rounds, args.allocator == "stock")


if __name__ == "__main__":
    main()
