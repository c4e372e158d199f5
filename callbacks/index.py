"""Writes the index that similar photos are looked up in."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, Trainer

from callbacks.embeddings import embed
from callbacks.gallery import fingerprint
from callbacks.gallery_writing import Rows, stamp, write
from callbacks.predictions import datamodule


class Index(Callback):
    """Embeds the photos of all splits after a test and writes them to `index/` in the stage's folder, see `Gallery`.

    `use.py search RUN` looks photos up in it. Its `about.json` has `splits`, [[name, number of photos], …] in the order
    of the rows. A photo that cannot be read is left out where the data skip such photos, and is an error where not.

    Args:
        splits: to be embedded; null for all there are.
    """

    def __init__(self, splits: list[str] | None = None) -> None:
        self.splits = splits

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        there = datamodule(trainer).splits
        if unknown := [name for name in self.splits or () if name not in there]:
            raise ValueError(f"index.splits: there is no split {unknown[0]!r}, there are {', '.join(there)}")

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        data = datamodule(trainer)
        names: list[str] = []
        parts, splits = [], []
        for split in self.splits or data.splits:
            index = np.arange(len(data.splits[split]))
            vectors = embed(trainer, pl_module, split, index)
            if trainer.is_global_zero:
                kept = ~np.isnan(vectors).all(1)
                parts.append(vectors[kept])
                names += [data.name(split, at) for at in index[kept].tolist()]
                splits.append([split, int(kept.sum())])
        if trainer.is_global_zero:
            root = Path(data.root).absolute()
            stamps = np.array([stamp(root / name) for name in names], np.int64)
            rows, model = Rows(names, np.concatenate(parts), stamps), fingerprint(pl_module, data.transform)
            write(Path(trainer.default_root_dir) / "index", rows, model, root, {"splits": splits})
        trainer.strategy.barrier("index")
