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
from rounds import in_turn, show, timed
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


def spu(batch: int, rounds: int) -> None:
    """One batch of an epoch: the usual way, the same head with the trunk in front, and on kept features."""
    jpegs, rows = photos(min(batch, 64)), Rows(batch)
    trunk = Encoder("torchvision:alexnet", "none", None, None, "default", None).eval()
    module = SPUAnnotator(Trunk(WIDTH), [f"t{i}" for i in range(TAGS)], 1000, "relu", "mean", [1], 0, optimiser())
    steps = optimiser().build(module.named_parameters(), fused=True)
    usual_head = nn.Sequential(nn.Linear(WIDTH, 1000), nn.ReLU(), nn.Linear(1000, TAGS))
    usual_steps = torch.optim.SGD(usual_head.parameters(), 0.005, 0.9, foreach=False)
    look = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
                               transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])  # fmt: skip
    index = np.arange(batch)
    targets = rows.targets(index)
    kept = np.random.default_rng(0).random((batch, WIDTH), dtype=np.float32).astype(np.float16)
    low = torch.autocast("cpu", torch.bfloat16, enabled=computes_bf16("cpu"))

    def pixels() -> Tensor:
        return torch.stack([look(Image.open(io.BytesIO(jpegs[i % len(jpegs)])).convert("RGB")) for i in range(batch)])

    def usual() -> None:
        with torch.no_grad():
            features = trunk(pixels())
        dense = torch.zeros(batch, TAGS)
        dense[torch.arange(batch).repeat_interleave(6), targets["tags"]] = 1 / 6
        usual_steps.zero_grad()
        F.cross_entropy(usual_head(features), dense).backward()
        usual_steps.step()

    def head(features: Tensor) -> None:
        steps.zero_grad()
        with low:
            loss = module.step({**targets, "features": features}, "train")["loss"]
        loss.backward()
        steps.step()

    def same_head() -> None:
        with torch.no_grad(), low:
            features = trunk(pixels())
        head(features)

    def cached() -> None:
        head(torch.from_numpy(kept[index]))

    ways = {"usual": usual, "same head": same_head, "kept": cached}
    taken = in_turn({name: partial(timed, work) for name, work in ways.items()}, rounds)
    print(f"SPU, {batch} photos")
    show(taken, "usual", "kept", ">= 20")
    show(taken, "same head", "kept", ">= 7")


class Clock(pl.Callback):
    """Processor time from an epoch's first step to its last."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.process_time()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.process_time() - self.start


def trainer_cost(n: int, rounds: int, folder: Path) -> None:
    """Two heads on 512 features, batch 256: an epoch through our Trainer set-up against a loop over the same steps."""
    rows, kept = Rows(n), np.random.default_rng(0).random((n, 512), dtype=np.float32)

    def module() -> FashionMTL:
        torch.manual_seed(0)
        return FashionMTL(Trunk(512), {"a": list("xyz"), "b": list("xyz")}, True, None, 0.0, 0.0, optimiser("adam"))

    def loader(group: int) -> FeatureLoader:
        return FeatureLoader(kept, rows, TrainSampler(n, 256, 0), 256, group, drop_last=True)  # type: ignore[arg-type]

    def loop() -> float:
        net = module()
        steps = net.optimiser.build(net.named_parameters(), fused=True)

        def epoch() -> None:
            for batch in loader(0):
                steps.zero_grad()
                net.step(batch, "train")["loss"].backward()
                steps.step()

        return timed(epoch)

    def ours(group: int) -> float:
        net, clock = module(), Clock()
        net.automatic_optimization = not group
        log = StepLog(Progress("fit"), "val/loss")
        out = Path(tempfile.mkdtemp(dir=folder))
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, default_root_dir=out, enable_progress_bar=False,
            enable_model_summary=False, logger=[MetricsFile(out / "metrics.jsonl")], use_distributed_sampler=False,
            callbacks=[clock, log, RandomState(), LastCheckpoint(out / "last.ckpt", 300, log)],
        )  # fmt: skip
        trainer.fit(net, loader(group))
        return clock.seconds

    taken = in_turn({"loop": loop, "grouped": lambda: ours(16), "one by one": lambda: ours(0)}, rounds)
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
