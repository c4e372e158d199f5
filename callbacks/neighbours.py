"""Shows what a technique takes for similar, before and after its training."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, Trainer
from numpy.typing import NDArray

from callbacks.embeddings import classes, embed
from callbacks.gallery import unit
from callbacks.nearest import encode, nearest
from callbacks.pictures import Picture, sheet, write_pictures
from callbacks.predictions import datamodule

Found = dict[str, Any]


class Neighbours(Callback):
    """The nearest held-out photos of some held-out photos, by the untrained embedding and by the chosen one.

    Queries and the photos that they are compared with are drawn from the test split by seed, the same ones both times.
    Where photos have classes, the share of neighbours of the query's class is told too, over all these photos as
    queries (precision@count).

    Args:
        queries: photos that are shown with their neighbours.
        count: neighbours of each.
        gallery: photos of the test split that are compared, at most.
        seed: of the choice.
    """

    def __init__(self, queries: int, count: int, gallery: int, seed: int) -> None:
        for name, value, least in (("queries", queries, 1), ("count", count, 1), ("gallery", gallery, 2)):
            if value < least:
                raise ValueError(f"neighbours.{name}={value} must be {least} or more")
        self.queries, self.count, self.gallery, self.seed = queries, count, gallery, seed
        self.before: Found | None = None  # empty on the other ranks

    def state_dict(self) -> Found:
        return {"before": self.before}  # a resumed fit starts with an embedding that is no longer untrained

    def load_state_dict(self, state_dict: Found) -> None:
        self.before = state_dict["before"]

    def chosen(self, trainer: Trainer) -> NDArray[np.int64]:
        """The photos that take part, the shown queries first; none where there are no two."""
        count = len(datamodule(trainer).splits.get("test", ()))
        order = np.random.default_rng((self.seed, count)).permutation(count)
        return order[: self.gallery] if count > 1 else order[:0]

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self.before is None and len(self.chosen(trainer)):
            self.before = self.look(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not len(self.chosen(trainer)):
            return
        after = self.look(trainer, pl_module)
        if trainer.is_global_zero:
            times = {"before training": self.before, "after training": after}
            pictures = [self.picture(trainer, f"Neighbours {time}", found) for time, found in times.items() if found]
            write_pictures(Path(trainer.default_root_dir), "neighbours", pictures)

    def look(self, trainer: Trainer, pl_module: Any) -> Found:
        """The queries' neighbours on rank 0: `query` [place], `neighbours` [[place]], `cosine`, `precision`."""
        index = self.chosen(trainer)
        vectors = embed(trainer, pl_module, "test", index)
        if not trainer.is_global_zero:
            return {}
        readable = np.isfinite(vectors).all(1)
        index, vectors = index[readable], unit(vectors[readable])
        count = min(self.count, len(index) - 1)
        cosine, place = others(*nearest(vectors, vectors, encode(vectors), count + 1))
        kinds = np.array(classes(trainer, "test", index), dtype=object)
        known = kinds != None  # noqa: E711  # of each, not of the array
        same = (kinds[place] == kinds[:, None])[known]
        shown = slice(0, self.queries)
        return {
            "query": index[shown].tolist(),
            "neighbours": index[place[shown]].tolist(),
            "cosine": cosine[shown].tolist(),
            "precision": float(same.mean()) if same.size else None,
            "photos": len(index),
        }

    def picture(self, trainer: Trainer, title: str, found: Found) -> Picture:
        """The sheet of some neighbours, the query of each row first."""
        data = datamodule(trainer)
        places = [[query, *row] for query, row in zip(found["query"], found["neighbours"], strict=True)]
        rows = [[data.picture("test", at) for at in row] for row in places]
        labels = [["query", *(f"{value:.3f}" for value in row)] for row in found["cosine"]]
        caption = f"Each row: a test photo, then the nearest of {found['photos']:,} with their cosine similarity."
        if found["precision"] is not None:
            caption += f" Of the {len(places[0]) - 1} nearest, {found['precision']:.1%} have the query's class."
        names = [[data.name("test", at) for at in row] for row in places]
        return Picture(title, sheet(rows, labels), caption, {**found, "names": names})


def others(cosine: NDArray[np.float32], place: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Each row's neighbours without the row itself, which need not be the first where photos are equal."""
    own = place == np.arange(len(place))[:, None]
    own[~own.any(1), -1] = True  # so many equals that it is not even among them
    shape = len(place), place.shape[1] - 1
    return cosine[~own].reshape(shape), place[~own].reshape(shape)
