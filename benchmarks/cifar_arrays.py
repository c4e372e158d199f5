"""From CIFAR-10 in memory to a normalised float batch: our arrays against torchvision's data set in torch's DataLoader.

Claim: at least 4 times as fast on one core. The same images, the same random changes (4 pixels of padding, a random
window, a flip), up to the same batch (64, 3, 32, 32), normalised, on the CPU. The peer is torchvision's CIFAR10 with v1
transforms and `num_workers=0`, as tutorials have it: one thread, processor time. Beside it, without a goal, wall time
against `num_workers=2`. The clock starts at the first batch, when the workers are up; times are those of a batch.

    python benchmarks/cifar_arrays.py [--root data/cifar10] [--quick]

Where there is no such folder a set is drawn; one of fewer than 50,000 images is repeated up to that size.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rounds import in_turn, show
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

from datamodules.array_transforms import BatchAugment
from datamodules.arrays import Arrays, Block
from datamodules.cifar10 import CIFAR10
from datamodules.loader import Loader
from datamodules.samplers import TrainSampler

SIDE, BATCH, IMAGES = 32, 64, 50_000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
AUGMENT = BatchAugment(pad=4, flip=0.5)
Batches = Iterator[Tensor]


class Peer(datasets.CIFAR10):
    """Torchvision's own data set, of a copy that need not be the published one."""

    def __init__(self, root: Path) -> None:
        steps = [RandomCrop(SIDE, padding=4), RandomHorizontalFlip(), ToTensor(), Normalize(MEAN, STD)]
        super().__init__(root, transform=Compose(steps))
        self.data, self.targets = repeated(self.data), repeated(np.array(self.targets)).tolist()

    def _check_integrity(self) -> bool:
        return True

    def _load_meta(self) -> None:
        pass


def repeated(rows: Any) -> Any:
    """50,000 rows."""
    return np.concatenate([rows] * -(-IMAGES // len(rows)))[:IMAGES]


def our_split(root: Path) -> Arrays:
    data = CIFAR10(root, BATCH, 0, 1, "warn", 0)
    data.setup()
    train = data.splits["train"]
    labels = {task: repeated(ids) for task, ids in train.labels.items()}
    return Arrays([Block(repeated(train.blocks[0].pixels), [])], np.arange(IMAGES), labels, AUGMENT)


def normalise(image: Tensor) -> Tensor:
    """The tail of our side, as the encoder does it: whole rows of pixels in place, channels last."""
    mean, std = (torch.tensor(value).repeat(SIDE) * 255 for value in (MEAN, STD))
    rows = image.permute(0, 2, 3, 1).reshape(-1, 3 * SIDE).float()
    return rows.sub_(mean).div_(std).view(-1, SIDE, SIDE, 3).permute(0, 3, 1, 2)


def theirs(images: Peer, workers: int) -> Batches:
    loader = DataLoader(images, BATCH, shuffle=True, drop_last=True, num_workers=workers)
    return (image for image, _ in loader)


def ours(split: Arrays) -> Batches:
    loader = Loader(split, TrainSampler(len(split), BATCH, seed=0), BATCH, True, threads=1)
    return (normalise(AUGMENT(batch["image"], batch["draws"])) for batch in loader)


def seconds(side: Callable[[], Batches], count: int, clock: Callable[[], float]) -> float:
    """Of one of `count` batches, after a first one."""
    batches = side()
    next(batches)
    start = clock()
    for batch in islice(batches, count):
        assert batch.shape == (BATCH, 3, SIDE, SIDE)
        assert batch.dtype == torch.float32
    return (clock() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/cifar10"), help="(default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two short rounds: shows that it runs, measures little")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = args.root if args.root.is_dir() else Path(folder) / "cifar10"
        if root != args.root:
            CIFAR10.draw_sample(root)
        images, split = Peer(root), our_split(root)
    rounds, count = (2, 10) if args.quick else (9, 60)
    own = partial(seconds, partial(ours, split), 5 * count)
    for workers, clock, goal in ((0, time.process_time, ">= 4"), (2, time.perf_counter, "")):
        peer = partial(seconds, partial(theirs, images, workers), (1 + 2 * workers) * count)
        what = "processor" if workers == 0 else "wall"
        print(f"one thread against num_workers={workers}, {what} time of a batch of {BATCH}")
        show(in_turn({"peer": partial(peer, clock), "ours": partial(own, clock)}, rounds), "peer", "ours", goal)


if __name__ == "__main__":
    main()
