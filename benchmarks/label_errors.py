"""Planted label errors found again: AUM's two passes beside cleanlab, and what dropping them is worth.

A share of the training labels is made wrong by seed. Both sides learn one linear layer a task on the same frozen
features, computed once: AUM trains twice and judges by its threshold samples; cleanlab (confident learning, Northcutt,
Jiang and Chuang, 2021) trains five folds, since it needs probabilities for photos that the network did not learn from.
Then the layer is trained on all labels, without what either side suspects, without as many at random, and without the
planted ones, and judged on clean test labels. The goal: with 20 % planted, precision and recall of at least .8.

    python benchmarks/label_errors.py --data cifar10 --weights tf_efficientnet_lite0_in1k.pth [--flip 0.05 0.1 0.2 0.4]
    python benchmarks/label_errors.py --data fascode --weights tf_efficientnet_lite0_in1k.pth [--quick]
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from hydra.utils import instantiate
from torch.nn import functional as F

from callbacks.judgement import read_judged, suggest
from callbacks.margins import Margins
from datamodules.cifar10 import CIFAR10
from datamodules.features import FeatureData
from lightning_modules.fashion_mtl import FashionMTL
from lightning_modules.nn.backbones import Encoder
from lightning_modules.optimisers import Optimiser

ROOT = Path(__file__).parent.parent
FOLDS = 5
MISSING = -1
MOST = 0.5  # of the labels of a class that may be dropped, as in conf/callbacks/margins.yaml
Found = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]  # for each task: which labels of train, how suspicious each


def build(name: str, root: Path, images: int | None, seed: int, labels: Mapping[str, Any]) -> Any:
    """The DataModule, set up, without random changes of its photos."""
    node = yaml.safe_load((ROOT / f"conf/datamodules/{name}.yaml").read_text(encoding="utf-8"))
    node |= {
        "root": str(root / name),
        "seed": seed,
        "on_leak": "drop",
        "augment": None,
        "labels": dict(labels),
    }
    if name == "cifar10":
        node |= {"train_images": images, "test_images": images and 1000}
    else:
        node |= {"on_bad_image": "error", "image_size": 96}
    data = instantiate(node, _convert_="all")
    data.setup()
    return data


@torch.no_grad()
def features(data: Any, weights: str, side: int) -> dict[str, np.ndarray]:
    """The frozen trunk's features of each split, photos enlarged to `side` where they are smaller."""
    encoder = Encoder("tf_efficientnet_lite0", weights).eval()
    found = {}
    for name, split in data.splits.items():
        rows = []
        for batch in data.exactly(name, np.arange(len(split))):
            image = batch["image"].float() / 255
            if image.shape[-1] < side:
                image = F.interpolate(image, (side, side), mode="bilinear")
            rows.append(encoder(image).numpy())
        found[name] = np.concatenate(rows)
    return found


def stored(data: Any, given: argparse.Namespace) -> dict[str, np.ndarray]:
    """The features, from the file of an earlier call if there is one; whoever names it answers for its settings."""
    if given.features and given.features.is_file():
        return dict(np.load(given.features))
    rows = features(data, given.weights, given.side)
    if given.features:
        np.savez(given.features, **rows)
    return rows


class Bench:
    """One set with planted errors, and trainings of the linear layer on it."""

    def __init__(self, given: argparse.Namespace, flip: float, seed: int) -> None:
        self.name, self.root, self.images = given.data, given.root, given.images
        self.epochs, self.percentile = given.epochs, given.percentile
        self.flip, self.seed = flip, seed
        self.data = self.made({})
        self.labels = {task: ids.copy() for task, ids in self.data.splits["train"].labels.items()}

    def made(self, more: Mapping[str, Any]) -> Any:
        """The set, with further changes of its labels."""
        return build(self.name, self.root, self.images, self.seed, {"flip": self.flip, **more})

    def train(self, data: Any, rows: Mapping[str, np.ndarray], *callbacks: pl.Callback, home: str = ".") -> FashionMTL:
        """The layer, trained on the labels that the data have now."""
        width = rows["train"].shape[1]
        wrapped = FeatureData(data, (width,), 0)
        wrapped.store = SimpleNamespace(rows=rows.__getitem__)
        torch.manual_seed(self.seed)
        rates = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01, "encoder_lr_scale": 1.0, "schedule": "constant"}
        optimiser = Optimiser(**rates, warmup_epochs=0, decay=0.1, decay_epochs=1, momentum=0.0)
        encoder = torch.nn.Identity()
        encoder.features = width
        module = FashionMTL(encoder, data.facts["classes"], True, None, 0.0, 0.0, optimiser)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = pl.Trainer(
            max_epochs=self.epochs, default_root_dir=home, callbacks=list(callbacks), enable_checkpointing=False,
            limit_val_batches=0, use_distributed_sampler=False, **quiet,
        )  # fmt: skip
        trainer.fit(module, datamodule=wrapped)
        return module.eval()

    def by_margins(self, rows: Mapping[str, np.ndarray]) -> Found:
        """What AUM suspects, and the order in which it does."""
        with tempfile.TemporaryDirectory() as home:
            for number, earlier in ((0, None), (1, f"{home}/margins.csv")):
                recorder = Margins("logits", "threshold", self.percentile, MOST, None, earlier, 0)
                self.train(self.made({"threshold": number}), rows, recorder, home=home)
            verdicts = read_judged(Path(home) / "margins.csv")
        names = self.data.names("train")
        suspicious = suggest(verdicts, MOST)
        chosen = {task: np.array([(name, task) in suspicious for name in names]) for task in self.labels}
        excess = {key: verdict.excess for key, verdict in verdicts.items()}
        return chosen, {task: -np.array([excess.get((name, task), np.inf) for name in names]) for task in chosen}

    def by_cleanlab(self, rows: Mapping[str, np.ndarray]) -> Found:
        """What cleanlab suspects, by out-of-sample probabilities, and the order in which it does."""
        count = len(rows["train"])
        fold = np.random.default_rng(self.seed).permutation(count) % FOLDS
        outside = {task: np.zeros((count, len(names))) for task, names in self.data.facts["classes"].items()}
        for number in range(FOLDS):
            module = self.train(self.without(dict.fromkeys(self.labels, fold == number)), rows)
            with torch.no_grad():
                logits = module.score({"features": torch.from_numpy(rows["train"][fold == number])})
            for task, scores in logits.items():
                outside[task][fold == number] = scores.softmax(1).numpy()
        found, low = {}, {}
        for task, ids in self.labels.items():
            known = np.flatnonzero(ids != MISSING)
            issues = find_label_issues(ids[known], outside[task][known], n_jobs=1)
            found[task], low[task] = np.isin(np.arange(count), known[issues]), np.full(count, -np.inf)
            low[task][known] = -get_label_quality_scores(ids[known], outside[task][known])
        return found, low

    def without(self, dropped: Mapping[str, np.ndarray]) -> Any:
        """The set without some labels."""
        train = self.data.splits["train"]
        train.labels = {task: np.where(dropped[task], MISSING, ids) for task, ids in self.labels.items()}
        return self.data

    def accuracy(self, rows: Mapping[str, np.ndarray], dropped: Mapping[str, np.ndarray]) -> float:
        """Mean top-1 over the tasks, on clean test labels, of the layer trained without some labels."""
        module = self.train(self.without(dropped), rows)
        with torch.no_grad():
            logits = module.score({"features": torch.from_numpy(rows["test"])})
        truth = self.data.splits["test"].labels
        right = [(logits[task].argmax(1).numpy() == ids)[ids != MISSING].mean() for task, ids in truth.items()]
        return float(np.mean(right))


def measure(bench: Bench, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Everything about one share of errors."""
    planted, chosen, order, seconds = bench.data.planted, {}, {}, {}
    for name, find in (("aum", bench.by_margins), ("cleanlab", bench.by_cleanlab)):
        start = time.process_time()
        chosen[name], order[name] = find(rows)
        seconds[name] = round(time.process_time() - start, 1)
    rng, nothing = np.random.default_rng(bench.seed), {task: np.zeros_like(wrong) for task, wrong in planted.items()}
    chance = {task: rng.permutation(which) for task, which in chosen["aum"].items()}
    sides = {"nothing": nothing, "at random": chance, **chosen, "planted": planted}
    result: dict[str, Any] = {"flip": bench.flip, "seed": bench.seed, "seconds": seconds}
    for name, which in chosen.items():
        for task, wrong in planted.items():
            hits, flagged = int((which[task] & wrong).sum()), int(which[task].sum())
            figures = {
                "flagged": flagged,
                "precision": hits / max(1, flagged),
                "recall": hits / max(1, int(wrong.sum())),
                "precision of as many as planted": float(wrong[np.argsort(-order[name][task])[: wrong.sum()]].mean()),
            }
            result[f"{name} {task}"] = {key: round(value, 3) for key, value in figures.items()}
    result["test"] = {f"without {name}": round(bench.accuracy(rows, which), 4) for name, which in sides.items()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("cifar10", "fascode"), default="cifar10")
    parser.add_argument("--weights", default="none", help="ImageNet state dict of tf_efficientnet_lite0")
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="folder that holds cifar10/ and fascode/")
    parser.add_argument("--flip", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=5000, help="of CIFAR-10's training images")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--percentile", type=float, default=99, help="of the threshold samples' AUM")
    parser.add_argument("--side", type=int, default=96, help="to which CIFAR-10's images are enlarged")
    parser.add_argument("--features", type=Path, help="an .npz to keep the features in, for another call on one seed")
    parser.add_argument("--quick", action="store_true", help="drawn samples and no weights: shows that it runs")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    if given.quick:
        given.root, given.images, given.flip, given.epochs, given.side = Path(tempfile.mkdtemp()), None, [0.2], 1, 32
        CIFAR10.draw_sample(given.root / "cifar10")
    print("goal: precision and recall of at least .8 with 20 % planted", flush=True)
    for seed in given.seeds:
        rows = None
        for flip in given.flip:
            bench = Bench(given, flip, seed)
            rows = rows or stored(bench.data, given)  # errors are in the labels alone
            print(json.dumps(measure(bench, rows)), flush=True)


if __name__ == "__main__":
    main()
