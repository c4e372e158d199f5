"""Targets of a batch of tagged photos: flat ids with offsets against one dense row a photo and default_collate.

Claim: at least 25 x faster at 500 photos and 22,808 words (1 to 15 tags each, drawn from a long tail), with nothing
lost: the dense rows can be made again from ids and offsets. The peer is what a map-style data set with dense targets
does: a row of zeros, 1 / n at the tags, 500 rows stacked by torch's default_collate. Beside it the stacking alone, as
if the rows were there already (for 400,000 photos they would be 36 GB).
One thread, processor time, the variants in turn in one process, the median of the rounds' ratios and their range.

    python benchmarks/tag_collate.py [--quick]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rounds import in_turn, show, timed
from torch import Tensor
from torch.utils.data import default_collate

from datamodules.tags import TaggedPhotos, Tags
from datamodules.transforms import Transform

PHOTOS, WORDS, BATCH = 20_000, 22_808, 500
Job = Callable[[NDArray[np.int64]], object]


def draw(rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """The tags of each photo, the more frequent words first in the vocabulary."""
    sizes = rng.integers(1, 16, PHOTOS)
    return [np.unique((WORDS * rng.random(size) ** 3).astype(np.int64)) for size in sizes]


def row(tags: NDArray[np.int64]) -> Tensor:
    """Dense target of one photo."""
    dense = torch.zeros(WORDS)
    dense[torch.from_numpy(tags)] = 1 / len(tags)
    return dense


def dense(batch: dict[str, Tensor]) -> Tensor:
    """Dense targets (B, words) from ids and offsets."""
    sizes = batch["offsets"].diff()
    owners = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    targets = torch.zeros(len(sizes), WORDS)
    targets[owners, batch["tags"]] = (1 / sizes.float())[owners]
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round: shows that it runs, measures nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    tags = draw(rng)
    photos = TaggedPhotos([Path("x")] * PHOTOS, [""] * PHOTOS, Tags.of(tags), Transform(8, "squash"))
    ready = [row(tags[at]) for at in range(BATCH)]
    index = rng.integers(0, PHOTOS, BATCH)
    assert torch.equal(dense(photos.targets(index)), default_collate([row(tags[at]) for at in index])), "not the same"
    jobs: dict[str, Job] = {
        "ids and offsets": photos.targets,
        "dense rows + default_collate": lambda index: default_collate([row(tags[at]) for at in index]),
        "default_collate of ready rows": lambda index: default_collate(ready),
    }

    def side(job: Job, repeats: int) -> Callable[[], float]:
        return lambda: timed(lambda: job(rng.integers(0, PHOTOS, BATCH)), 1 if quick else repeats)

    ours, *peers = jobs
    taken = in_turn({name: side(job, 200 if name == ours else 10) for name, job in jobs.items()}, 1 if quick else 7)
    print(f"{BATCH} photos, {WORDS:,} words")
    for peer in peers:
        show(taken, peer, ours, ">= 25")


if __name__ == "__main__":
    main()
