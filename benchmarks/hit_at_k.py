"""hit@{1, 5, 10, 20, 30, 50} of a batch: our metric against torchmetrics' MulticlassAccuracy for each k.

Claim, at 500 photos x 22,808 tags under the same allocator: at least 30 x as fast as six `MulticlassAccuracy(top_k=k,
average="micro")`, with at most 1/100 of the memory; the default of that class, `macro`, is slower still. Both sides are
updated and computed, and agree. Both in one process, once as it is (`stock`) and once with glibc keeping freed memory
(`kept`): page faults cost the peer much more. One thread, processor time, the variants in turn, median of the rounds'
ratios and their range. Memory is the growth of the peak resident set, measured in `stock` (Linux).

    python benchmarks/hit_at_k.py [--quick] [--allocator stock|kept]
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from memory import arguments, growth
from rounds import in_turn, show, timed
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.nn.metrics import HitAtK

KS = (1, 5, 10, 20, 30, 50)
PHOTOS, WORDS = 500, 22_808
Job = Callable[[], dict[int, float]]


def ours(logits: Tensor, labels: Tensor) -> Job:
    offsets = torch.arange(len(labels) + 1)

    def run() -> dict[int, float]:
        metric = HitAtK(KS)
        metric.update(logits, labels, offsets)
        return metric.compute()["all"]

    return run


def peer(logits: Tensor, labels: Tensor) -> Job:
    def run() -> dict[int, float]:
        metrics = {k: MulticlassAccuracy(logits.shape[1], top_k=k, average="micro") for k in KS}
        for metric in metrics.values():
            metric.update(logits, labels)
        return {k: metric.compute().item() for k, metric in metrics.items()}

    return run


def compare(photos: int, words: int, rounds: int, stock: bool) -> None:
    """Print the ratios; both sides must agree."""
    logits, labels = torch.randn(photos, words), torch.randint(0, words, (photos,))
    logits[torch.arange(photos), labels] += 2.5  # so that there are hits
    us, them = ours(logits, labels), peer(logits, labels)
    torch.testing.assert_close(us(), them(), rtol=0, atol=1e-6)
    if stock and Path("/proc/self/clear_refs").exists():
        mine, theirs = (max(growth(job), 4096) for job in (us, them))
        print(f"  memory: {theirs / 1e6:.1f} MB / {mine / 1e6:.2f} MB = {theirs / mine:.0f} x   goal >= 100")
    show(
        in_turn({"torchmetrics": partial(timed, them), "ours": partial(timed, us)}, rounds),
        "torchmetrics",
        "ours",
        ">= 30",
    )


def main() -> None:
    args = arguments(__doc__, "a small batch")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    photos, words, rounds = (20, 500, 1) if args.quick else (PHOTOS, WORDS, 7)
    print(f"\n{args.allocator} allocator, {photos} photos x {words} tags, {rounds} rounds", flush=True)
    compare(photos, words, rounds, args.allocator == "stock")


if __name__ == "__main__":
    main()
