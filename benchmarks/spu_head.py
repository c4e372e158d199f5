"""A training step of the SPU annotator's layers on features that were computed before, and its loss alone.

Claims, at 500 photos x 4,096 features -> 1,000 -> 22,808 tags, 1 to 15 tags a photo, under the same allocator:
the step is at least 3 x as fast as the dense float32 formulation (multi-hot target built in the step, F.cross_entropy,
for-loop optimiser) on a CPU whose bfloat16 products are about 4 x as fast as its float32 ones; with slower ones the
limit that is printed falls: the products alone at the measured bfloat16 rate, everything else for nothing. In float32
no more than 1.15 x is to be had. The loss takes at most 0.75 x the dense one's time and adds at most 1.2 x the logits.
Both sides in one process, once as it is (`stock`) and once with glibc keeping freed memory (`kept`): page faults cost
the dense side much more. One thread, processor time, the variants in turn, median of the rounds' ratios and their
range. Memory is the growth of the peak resident set, measured in `stock` (Linux).

    python benchmarks/spu_head.py [--quick] [--allocator stock|kept]
"""

import statistics
from pathlib import Path
from typing import Any

import torch
from memory import arguments, growth
from rounds import Job, in_turn, show, timed
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.nn.losses import mean_softmax_loss
from lightning_modules.optimisers import Optimiser
from lightning_modules.spu_annotator import SPUAnnotator

Batch = dict[str, Tensor]
PHOTOS, FEATURES, HIDDEN, WORDS = 500, 4096, 1000, 22_808


def draw(photos: int, features: int, words: int) -> Batch:
    counts = torch.randint(1, 16, (photos,))
    offsets = F.pad(counts.cumsum(0), (1, 0))
    batch = {"features": torch.randn(photos, features).relu(), "tags": torch.randint(0, words, (int(offsets[-1]),))}
    return batch | {"offsets": offsets, "index": torch.arange(photos)}


def dense_loss(logits: Tensor, tags: Tensor, offsets: Tensor) -> Tensor:
    """The usual way: a row of probabilities for each photo."""
    counts = offsets.diff()
    photo = torch.repeat_interleave(torch.arange(len(counts)), counts)
    target = torch.zeros_like(logits).index_put_((photo, tags), (1 / counts.float())[photo], accumulate=True)
    return F.cross_entropy(logits, target)


def peer(batch: Batch, hidden: int, words: int, name: str) -> Job:
    """The dense float32 step with a for-loop optimiser."""
    net = nn.Sequential(nn.Linear(batch["features"].shape[1], hidden), nn.ReLU(), nn.Linear(hidden, words))
    sgd = {"lr": 0.005, "momentum": 0.9, "nesterov": True}
    kind, settings = (torch.optim.SGD, sgd) if name == "sgd" else (torch.optim.Adam, {"lr": 1e-3})
    optimizer = kind(net.parameters(), foreach=False, **settings)  # type: ignore[arg-type]

    def step() -> None:
        optimizer.zero_grad()
        dense_loss(net(batch["features"]), batch["tags"], batch["offsets"]).backward()
        optimizer.step()

    return lambda: timed(step)


def ours(batch: Batch, hidden: int, words: int, name: str, bfloat16: bool) -> Job:
    """The technique's own step, with its fused optimiser."""
    trunk: Any = nn.Identity()
    trunk.features = batch["features"].shape[1]
    optimiser = Optimiser(name, 0.005, 0.0, 1.0, "constant", warmup_epochs=0, decay=1, decay_epochs=1, momentum=0.9)  # type: ignore[arg-type]
    module = SPUAnnotator(trunk, [str(i) for i in range(words)], hidden, "relu", "mean", [1], 0, optimiser)
    optimizer = optimiser.build(module.named_parameters())

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = module.step(batch, "train")["loss"]
        loss.backward()
        optimizer.step()

    return lambda: timed(step)


def loss_alone(batch: Batch, words: int, kind: str) -> Job:
    """Loss and gradient of given logits, which are made anew, unmeasured, for each run."""
    logits = torch.randn(len(batch["index"]), words)

    def run() -> float:
        scores = logits.clone().requires_grad_().view_as(logits)  # a view, since a leaf may not be overwritten
        if kind == "dense":
            return timed(lambda: dense_loss(scores, batch["tags"], batch["offsets"]).backward())
        arguments = (scores, batch["tags"], batch["offsets"], kind == "overwriting")
        return timed(lambda: mean_softmax_loss(*arguments).mean().backward())

    return run


def compare_steps(batch: Batch, hidden: int, words: int, rounds: int) -> None:
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    jobs = {f"dense {name}": peer(batch, hidden, words, name) for name in ("sgd", "adam")}
    jobs |= {f"ours {name} fp32": ours(batch, hidden, words, name, False) for name in ("sgd", "adam")}
    if fast:
        jobs |= {f"ours {name} bf16": ours(batch, hidden, words, name, True) for name in ("sgd", "adam")}
    taken = in_turn(jobs, rounds)
    print("head step")
    for name in ("sgd", "adam"):
        show(taken, f"dense {name}", f"ours {name} fp32")
        if fast:
            show(taken, f"dense {name}", f"ours {name} bf16", ">= 3")
    if not fast:
        print("  this CPU has no bfloat16 products: the goal does not apply")
        return
    (flops, seconds), (_, slow) = (products(batch, hidden, words, dtype) for dtype in (torch.bfloat16, torch.float32))
    limits = [f"{statistics.median(taken[f'dense {name}']) / seconds:.2f} x ({name})" for name in ("sgd", "adam")]
    print(f"  products alone: bf16 {flops / seconds / 1e9:.0f}, fp32 {flops / slow / 1e9:.0f} GFLOP/s "
          f"({slow / seconds:.2f} x), so that bf16 can reach at most {', '.join(limits)}")  # fmt: skip


def products(batch: Batch, hidden: int, words: int, dtype: torch.dtype) -> tuple[float, float]:
    """Operations of the step's five matrix products, and the seconds that they alone take (best of three)."""
    photos, features = batch["features"].shape
    x, h, g = (torch.randn(photos, size).to(dtype) for size in (features, hidden, words))
    w1, w2 = torch.randn(hidden, features).to(dtype), torch.randn(words, hidden).to(dtype)
    seconds = min(timed(lambda: (x @ w1.T, h @ w2.T, g @ w2, g.T @ h, h.T @ x)) for _ in range(3))
    return 2.0 * photos * (2 * features * hidden + 3 * hidden * words), seconds


def compare_losses(batch: Batch, words: int, rounds: int, stock: bool) -> None:
    jobs = {kind: loss_alone(batch, words, kind) for kind in ("overwriting", "copying", "dense")}
    taken = in_turn(jobs, 3 * rounds)
    print("loss and its gradient")
    show(taken, "overwriting", "dense", "<= 0.75")
    show(taken, "copying", "dense", "<= 0.75")
    if stock and Path("/proc/self/clear_refs").exists():
        size = 4 * len(batch["index"]) * words
        shares = [f"{kind} {(growth(job) - size) / size:.2f} x" for kind, job in jobs.items()]
        print(f"  memory beside the logits ({size / 1e6:.1f} MB): {', '.join(shares)}   goal <= 1.2")


def check(batch: Batch, words: int) -> None:
    """Both losses are the same function."""
    logits = torch.randn(len(batch["index"]), words, requires_grad=True)
    values = (dense_loss(logits, batch["tags"], batch["offsets"]),
              mean_softmax_loss(logits, batch["tags"], batch["offsets"]).mean())  # fmt: skip
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in values), rtol=1e-4, atol=1e-8)


def main() -> None:
    args = arguments(__doc__, "a small head")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    photos, features, hidden, words = (20, 64, 16, 500) if args.quick else (PHOTOS, FEATURES, HIDDEN, WORDS)
    rounds = 1 if args.quick else 7
    batch = draw(photos, features, words)
    print(f"\n{args.allocator} allocator, {photos} x {features} -> {hidden} -> {words}, {rounds} rounds", flush=True)
    check(batch, words)
    compare_losses(batch, words, rounds, args.allocator == "stock")
    compare_steps(batch, hidden, words, rounds)


if __name__ == "__main__":
    main()
