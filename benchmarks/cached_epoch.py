"""What keeping a frozen trunk's features is worth, and what the Trainer adds to an epoch on them.

Claims: an SPU epoch (AlexNet up to FC7, H of 1,000, 22,808 tags) on kept features is at least 20 x faster than the
usual one, which decodes with Pillow, runs the trunk in float32 and builds dense targets, and at least 7 x faster than
the same head with the trunk in front; an epoch on kept features through our Trainer set-up costs at most 1.15 x a
hand-written loop over the same minibatches.

One thread, processor time, the variants in turn in one process, median of the rounds with their spread.

`--paper` times the paper's own size instead: 400,000 photos, batch 500, random features, some steps of an epoch.

    python benchmarks/cached_epoch.py [--quick | --paper]
"""

import argparse
import io
import logging
import resource
import statistics
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from rounds import Job, in_turn, show, timed
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms

from datamodules.features import FeatureLoader
from datamodules.samplers import TrainSampler
from engine.devices import computes_bf16
from engine.hooks import LastCheckpoint, RandomState, StepLog
from engine.loggers import MetricsFile
from engine.progress import Progress
from lightning_modules.fashion_mtl import FashionMTL
from lightning_modules.nn.backbones import Encoder
from lightning_modules.optimisers import Optimiser
from lightning_modules.spu_annotator import SPUAnnotator

TAGS, WIDTH = 22_808, 4096


class Rows:
    """What a split has of its samples but their pixels: tags for SPU, labels for the heads."""

    def __init__(self, n: int) -> None:
        rng = np.random.default_rng(0)
        self.starts = np.arange(n + 1) * 6
        self.tags = torch.from_numpy(rng.integers(0, TAGS, 6 * n))
        self.labels = torch.from_numpy(rng.integers(0, 3, n))

    def expand(self, items: list[Any]) -> list[Any]:
        """What is loaded for these samples: themselves."""
        return items

    def targets(self, index: np.ndarray) -> dict[str, Any]:
        """CSR tags and labels of some samples."""
        tags = self.tags.view(-1, 6)[index].reshape(-1)
        offsets = torch.arange(0, 6 * len(index) + 1, 6)
        labels = {"a": self.labels[index], "b": self.labels[index]}
        return {"index": torch.from_numpy(index), "tags": tags, "offsets": offsets, "labels": labels}


class Trunk(nn.Module):
    """Stands where the encoder stands; features are kept, so it is never run."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features


def photos(n: int) -> list[bytes]:
    """JPEGs of 600 x 500 with some detail, about 60 KB each."""
    rng, kept = np.random.default_rng(0), []
    for _ in range(n):
        coarse = Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).resize((600, 500))
        file = io.BytesIO()
        coarse.save(file, "JPEG", quality=92)
        kept.append(file.getvalue())
    return kept


def optimiser(name: str = "sgd") -> Optimiser:
    return Optimiser(name, 0.005, 0.0, 1.0, "constant", 0, 0.95, 1, 0.9)


class Ways:
    """One batch of an SPU epoch, three ways: each method is one step of training on the same photos and tags."""

    def __init__(self, batch: int) -> None:
        self.jpegs, self.targets = photos(min(batch, 64)), Rows(batch).targets(np.arange(batch))
        self.rows = np.random.default_rng(0).random((batch, WIDTH), dtype=np.float32).astype(np.float16)
        self.trunk = Encoder("torchvision:alexnet", "none", None, None, "default", None).eval()
        self.module = SPUAnnotator(
            Trunk(WIDTH), [f"t{i}" for i in range(TAGS)], 1000, "relu", "mean", [1], 0, optimiser()
        )
        self.optimizer = optimiser().build(self.module.named_parameters(), fused=True)
        self.usual_head = nn.Sequential(nn.Linear(WIDTH, 1000), nn.ReLU(), nn.Linear(1000, TAGS))
        self.usual_optimizer = torch.optim.SGD(self.usual_head.parameters(), 0.005, 0.9, foreach=False)
        look = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
        self.look = transforms.Compose([*look, transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
        self.low = torch.autocast("cpu", torch.bfloat16, enabled=computes_bf16("cpu"))

    def usual(self) -> None:
        """The trunk in float32, dense targets."""
        with torch.no_grad():
            features = self.trunk(self._pixels())
        dense = torch.zeros(len(self.rows), TAGS)
        dense[torch.arange(len(self.rows)).repeat_interleave(6), self.targets["tags"]] = 1 / 6
        self.usual_optimizer.zero_grad()
        F.cross_entropy(self.usual_head(features), dense).backward()
        self.usual_optimizer.step()

    def same_head(self) -> None:
        """Our head with the trunk in front."""
        with torch.no_grad(), self.low:
            features = self.trunk(self._pixels())
        self._head(features)

    def kept(self) -> None:
        """Our head on kept features."""
        self._head(torch.from_numpy(self.rows[np.arange(len(self.rows))]))

    def _pixels(self) -> Tensor:
        jpegs = [self.jpegs[i % len(self.jpegs)] for i in range(len(self.rows))]
        return torch.stack([self.look(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in jpegs])

    def _head(self, features: Tensor) -> None:
        self.optimizer.zero_grad()
        with self.low:
            loss = self.module.step({**self.targets, "features": features}, "train")["loss"]
        loss.backward()
        self.optimizer.step()


def spu(batch: int, rounds: int) -> None:
    """One batch of an epoch: the usual way, the same head with the trunk in front, and on kept features."""
    ways = Ways(batch)
    sides = {"usual": ways.usual, "same head": ways.same_head, "kept": ways.kept}
    taken = in_turn({name: partial(timed, work) for name, work in sides.items()}, rounds)
    print(f"SPU, {batch} photos")
    show(taken, "usual", "kept", ">= 20")
    show(taken, "same head", "kept", ">= 7")


class Clock(pl.Callback):
    """Processor time from an epoch's first step to its last."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.process_time()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.process_time() - self.start


class Epochs:
    """An epoch of two heads on n rows of 512 kept features, batch 256: by hand and through our Trainer set-up."""

    def __init__(self, n: int, folder: Path) -> None:
        self.rows, self.kept = Rows(n), np.random.default_rng(0).random((n, 512), dtype=np.float32)
        self.folder = folder

    def by_hand(self) -> float:
        """Seconds of a loop over the steps."""
        net = self._module()
        optimizer = net.optimiser.build(net.named_parameters(), fused=True)

        def epoch() -> None:
            for batch in self._loader(0):
                optimizer.zero_grad()
                net.step(batch, "train")["loss"].backward()
                optimizer.step()

        return timed(epoch)

    def ours(self, group: int) -> float:
        """Seconds of the same steps under the Trainer, so many in a group, each alone with 0."""
        net, clock = self._module(), Clock()
        net.automatic_optimization = not group
        log = StepLog(Progress("fit"), "val/loss")
        out = Path(tempfile.mkdtemp(dir=self.folder))
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, default_root_dir=out, enable_progress_bar=False,
            enable_model_summary=False, logger=[MetricsFile(out / "metrics.jsonl")], use_distributed_sampler=False,
            callbacks=[clock, log, RandomState(), LastCheckpoint(out / "last.ckpt", 300, log)],
        )  # fmt: skip
        trainer.fit(net, self._loader(group))
        return clock.seconds

    def _module(self) -> FashionMTL:
        torch.manual_seed(0)
        return FashionMTL(Trunk(512), {"a": list("xyz"), "b": list("xyz")}, True, None, 0.0, 0.0, optimiser("adam"))

    def _loader(self, group: int) -> FeatureLoader:
        sampler = TrainSampler(len(self.kept), 256, 0)
        return FeatureLoader(self.kept, self.rows, sampler, 256, group, drop_last=True)  # type: ignore[arg-type]


def trainer_cost(n: int, rounds: int, folder: Path) -> None:
    """What our Trainer set-up costs over a loop over the same steps."""
    epochs = Epochs(n, folder)
    sides: dict[str, Job] = {
        "loop": epochs.by_hand,
        "grouped": partial(epochs.ours, 16),
        "one by one": partial(epochs.ours, 0),
    }
    taken = in_turn(sides, rounds)
    print(f"epoch of {n // 256} steps on kept features")
    show(taken, "grouped", "loop", "<= 1.15")
    show(taken, "one by one", "loop")


def paper_size(folder: Path, steps: int = 40) -> None:
    """Seconds of an epoch over 400,000 kept rows, from `steps` of its 800, on all cores; and the memory it takes."""
    n, rng = 400_000, np.random.default_rng(0)
    kept = np.lib.format.open_memmap(folder / "rows.npy", "w+", "float16", (n, WIDTH))
    block = rng.random((4_000, WIDTH), dtype=np.float32).astype(np.float16)
    for start in range(0, n, len(block)):
        kept[start : start + len(block)] = block
    module = SPUAnnotator(Trunk(WIDTH), [f"t{i}" for i in range(TAGS)], 1000, "relu", "mean", [1], 0, optimiser())
    optimizer = optimiser().build(module.named_parameters(), fused=True)
    loader = iter(FeatureLoader(kept, Rows(n), TrainSampler(n, 500, 0), 500, drop_last=True))  # type: ignore[arg-type]
    taken = []
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=computes_bf16("cpu")):
            loss = module.step(next(loader), "train")["loss"]
        loss.backward()
        optimizer.step()
        taken.append(time.perf_counter() - start)
    step, peak = statistics.median(taken), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"paper's size: {step * 1e3:.0f} ms a step of 500, {step * n / 500 / 60:.1f} min an epoch of {n // 500} steps"
    )
    print(f"  features {kept.nbytes / 1e9:.2f} GB on disk, peak memory {peak:.2f} GiB (mapped pages included)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small size: shows that it runs, measures nothing")
    parser.add_argument("--paper", action="store_true", help="the paper's size; needs 3.3 GB of disk")
    chosen = parser.parse_args()
    quick = chosen.quick
    if chosen.paper:
        with tempfile.TemporaryDirectory() as folder:
            paper_size(Path(folder))
        return
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        trainer_cost(2_000 if quick else 40_000, 1 if quick else 5, Path(folder))
    spu(8 if quick else 500, 1 if quick else 3)


if __name__ == "__main__":
    main()
