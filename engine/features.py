"""Decides whether a stage's frozen trunk can be run once instead of in every epoch, and if so runs it once."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from filelock import FileLock
from hydra.utils import get_class

from engine.checkpoints import add_tensors

log = logging.getLogger("nunchi")
VERSIONS = ("torch", "torchvision", "timm", "pillow", "simplejpeg")
WRAPPER = "datamodules.features.FeatureData"
STORE = "datamodules.features.FeatureStore"
GROUP = 16  # minibatches of a cached training step; PERFORMANCE: the Trainer's own cost is then below 5 %


def obstacle(stage: dict[str, Any], module: Any, data: Any) -> str | None:
    """Why a stage's features cannot be computed once; None if they can. `stage` carries the run's `features_gb`."""
    encoder = getattr(module, "encoder", None)
    if not _frozen(stage):
        return "nothing of the encoder is frozen (callbacks.freeze.modules)"
    if not isinstance(getattr(encoder, "features", None), int):
        return f"{type(module).__name__} has no single encoder here"
    if not feature_shape(stage, encoder, data):
        return "the encoder is frozen, but not from its first layer on, or it is no chain of modules"
    if getattr(module, "augment", None) is not None:
        return "module.augment changes the images of each epoch, which kept features would not show"
    if data.splits["train"].is_random:
        return (
            "the training transform is random (augment), so that each epoch sees other pixels; augment: null cures it"
        )
    if (need := gigabytes(stage, module, data)) > stage["features_gb"]:
        return f"they would take {need:.1f} GB, more than features_gb={stage['features_gb']:g}"
    return None


def _frozen(stage: dict[str, Any]) -> list[str]:
    """The parts of the encoder that a stage freezes, `encoder` itself or names below it."""
    nodes = [node for node in stage["callbacks"].values() if node["_target_"].endswith(".Freeze")]
    return [name for node in nodes for name in node["modules"] if name.split(".")[0] == "encoder"]


def feature_shape(stage: dict[str, Any], encoder: Any, data: Any) -> tuple[int, ...]:
    """What is kept of one picture: (D,), or of an encoder that is frozen in part the maps (C, H, W) where it ends.

    () if nothing can be. The encoder is split on the way, so that techniques can go on from the maps.
    """
    names = _frozen(stage)
    if "encoder" in names:
        return (encoder.features,)
    side = data.picture("train", 0).shape[-1]
    return tuple(encoder.split_after([name.removeprefix("encoder.") for name in names], side))


def wrap(stage: dict[str, Any], name: str, module: Any, data: Any) -> Any:
    """The DataModule that a stage trains on: the given one, or one that will carry features.

    Raises:
        ValueError: `features: on` where it cannot be, with the reason; `on` needs more space than `features_gb`.
    """
    why = obstacle(stage, module, data)
    if stage["features"] == "off" or why:
        if stage["features"] == "on":
            raise ValueError(f"stages.{name}.features=on: {why}")
        if stage["features"] == "auto" and why and _frozen(stage):
            log.info("%s: features are computed anew in each epoch: %s", name, why)
        return data
    trainer = stage["trainer"]
    shape = feature_shape(stage, module.encoder, data)
    neutral = trainer["limit_train_batches"] == 1.0 and trainer["max_steps"] == -1 and not trainer["fast_dev_run"]
    plain = trainer["accumulate_grad_batches"] == 1 and not trainer["gradient_clip_val"]
    plain = plain and trainer["precision"] != "16-mixed"  # whose gradients a scaler must see before each step
    return get_class(WRAPPER)(data, shape, GROUP if neutral and plain else 0)


def gigabytes(stage: dict[str, Any], module: Any, data: Any) -> float:
    """What all splits' features take in float32, at most."""
    rows = sum(len(split.pictures()) for split in data.splits.values())
    return rows * math.prod(feature_shape(stage, module.encoder, data)) * 4 / 1e9


class CacheFeatures(pl.Callback):
    """Fills the feature store in `setup("fit")`, after warm start and freeze, on all ranks together.

    Args:
        data: The `FeatureData` that the stage trains on.
        home: Folder of all stores.
        precision: The trainer's, part of what features depend on.
        config: The encoder's config, part of it too.
    """

    def __init__(self, data: Any, home: Path, precision: str, config: dict[str, Any]) -> None:
        self.data, self.home, self.precision, self.config = data, home, precision, config

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        pl_module.automatic_optimization = not self.data.group
        encoder = pl_module.encoder
        self.data.store = store = self._store(encoder)
        with self._locked(trainer, store):
            if not store.complete:
                self._fill(trainer, encoder, store)
        trainer.strategy.barrier("features")

    def _store(self, encoder: Any) -> Any:
        dtype = "float32" if self.precision == "32-true" else "float16"
        key = {
            "weights": fingerprint(encoder), "links": encoder.depth, "encoder": self.config,
            "precision": self.precision, "dtype": dtype,
            "transform": repr(self.data.transform), "versions": {name: metadata.version(name) for name in VERSIONS},
            "files": hashlib.sha256(json.dumps(self.data.files()).encode()).hexdigest(),
        }  # fmt: skip
        return get_class(STORE)(self.home, key, self.data.lengths(), math.prod(self.data.shape), dtype)

    @contextmanager
    def _locked(self, trainer: pl.Trainer, store: Any) -> Iterator[None]:
        """One run at a time fills a store; another that wants the same waits for it."""
        self.home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{store.part}.lock")
        if trainer.is_global_zero:
            lock.acquire()
            if not store.complete:
                store.begin()
        trainer.strategy.barrier("features begun")
        try:
            yield
        finally:
            lock.release()

    def _fill(self, trainer: pl.Trainer, encoder: Any, store: Any) -> None:
        rank, world = trainer.global_rank, trainer.world_size
        todo = [(split, index) for split in store.lengths for index in store.missing(split, rank, world)]
        device = trainer.strategy.root_device
        encoder.to(device)
        extract = encoder.below if encoder.depth else encoder
        progress = _Estimate(len(todo), store.size, trainer.is_global_zero)
        with encoder.evaluating(), torch.no_grad(), trainer.precision_plugin.forward_context():
            for split, index in todo:
                features = [extract(image.to(device)).flatten(1).float().cpu() for image in self._images(split, index)]
                store.write(split, index, torch.cat(features).numpy())
                progress.advance()
        trainer.strategy.barrier("features written")
        if trainer.is_global_zero:
            store.finish()
        trainer.strategy.barrier("features finished")

    def _images(self, split: str, index: np.ndarray) -> Iterator[torch.Tensor]:
        """The photos of some rows as evaluation sees them, decoded in threads."""
        for batch in self.data.exactly(split, index):
            yield batch["image"]
        for path, why in self.data.splits[split].pictures().broken.items():
            raise ValueError(f"{path}: {why}; take it out, or set features=off to have it skipped")


class _Estimate:
    """Says how far the extraction is and how long it will take, at most every few seconds."""

    def __init__(self, chunks: int, size: int, show: bool) -> None:
        self.chunks, self.show, self.done = chunks, show and chunks > 0, 0
        self.begun = self.shown = time.monotonic()
        if self.show:
            log.info("features: computed once and kept (%.0f MB)", size / 1e6)

    def advance(self) -> None:
        """One more chunk is done."""
        self.done += 1
        now = time.monotonic()
        if self.show and (now - self.shown > 5 or self.done == self.chunks):
            left = (now - self.begun) / self.done * (self.chunks - self.done)
            log.info("features: %d %%, %.0f s to go", 100 * self.done // self.chunks, left)
            self.shown = now


def fingerprint(encoder: Any) -> str:
    """A digest of the weights and buffers that features depend on: the encoder's, or those of its frozen links."""
    digest = hashlib.sha256()
    add_tensors(digest, encoder.state_dict_below() if encoder.depth else encoder.state_dict())
    return digest.hexdigest()
