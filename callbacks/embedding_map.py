"""Draws where a technique puts held-out photos: a map on which similar ones should lie together."""

from collections.abc import Callable
from importlib import import_module, util
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from lightning import Callback, Trainer
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from callbacks.embeddings import classes, embed
from callbacks.gallery import unit
from callbacks.pictures import PAPER, Picture, thumbnail, write_pictures
from callbacks.predictions import datamodule

Method = Literal["pca", "umap"]
Points = NDArray[np.float32]
Pixels = NDArray[np.int64]
Colour = tuple[int, int, int]
SIDE, MARGIN, DOT, FRAME = 960, 36, 4, 2  # pixels
# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
COLOURS: dict[str, Colour] = {
    "orange": (230, 159, 0), "sky blue": (86, 180, 233), "green": (0, 158, 115), "dark blue": (0, 114, 178),
    "vermilion": (213, 94, 0), "pink": (204, 121, 167), "yellow": (220, 205, 40), "black": (50, 54, 62),
}  # fmt: skip
GREY = (150, 156, 164)


class EmbeddingMap(Callback):
    """A map of the test photos' embeddings with thumbnails, written after a test.

    `pca` keeps the two directions in which the embeddings of length 1 spread most: distances far and near mean the
    same. `umap` keeps neighbours together and says little about how far apart the groups are. A class has a colour if
    there are no more than eight; thumbnails are put where they cover no other.

    Reference: McInnes et al., UMAP: Uniform Manifold Approximation and Projection, 2018.

    Args:
        method: pca, or umap, which needs the package umap-learn.
        photos: of the test split, drawn by seed, at most.
        thumbnails: of these, at most.
        side: of a thumbnail, in pixels.
        seed: of the choice, and of umap.

    Raises:
        ValueError: a setting outside its range, or umap-learn is not installed.
    """

    def __init__(self, method: Method, photos: int, thumbnails: int, side: int, seed: int) -> None:
        if method not in get_args(Method):
            raise ValueError(f"embedding_map.method={method!r} is not one of {', '.join(get_args(Method))}")
        if method == "umap" and util.find_spec("umap") is None:
            raise ValueError("embedding_map.method=umap needs a package: pip install umap-learn, or take method=pca")
        for name, value, least in (("photos", photos, 3), ("thumbnails", thumbnails, 0), ("side", side, 8)):
            if value < least:
                raise ValueError(f"embedding_map.{name}={value} must be {least} or more")
        self.method, self.photos, self.thumbnails, self.side, self.seed = method, photos, thumbnails, side, seed

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        count = len(datamodule(trainer).splits["test"])
        index = np.random.default_rng((self.seed, count)).permutation(count)[: self.photos]
        vectors = embed(trainer, pl_module, "test", index)
        if trainer.is_global_zero and np.isfinite(vectors).all(1).sum() >= 3:
            readable = np.isfinite(vectors).all(1)
            self.write(trainer, index[readable], unit(vectors[readable]))

    def write(self, trainer: Trainer, index: NDArray[np.int64], vectors: Points) -> None:
        """Write the map of these photos."""
        data = datamodule(trainer)
        points, said = principal(vectors) if self.method == "pca" else neighbourly(vectors, self.seed)
        kinds = classes(trainer, "test", index)
        colours = coloured(kinds)
        paint = [COLOURS[colours[kind]] if kind in colours else GREY for kind in kinds]
        page = self.draw(on_page(points), paint, lambda at: data.picture("test", int(index[at])))
        rows = [
            {"name": data.name("test", at), "x": round(x, 5), "y": round(y, 5), "class": kind}
            for at, (x, y), kind in zip(index.tolist(), points.tolist(), kinds, strict=True)
        ]
        legend = "; ".join(f"{colour}: {kind}" for kind, colour in colours.items())
        caption = f"{len(index):,} test photos, {said}.{' ' if legend else ''}{legend}"
        picture = Picture("Map of the embeddings", page, caption, {"method": self.method, "points": rows})
        write_pictures(Path(trainer.default_root_dir), "embedding_map", [picture])

    def draw(self, places: Pixels, paint: list[Colour], picture: Callable[[int], Tensor]) -> Image.Image:
        """Dots at some places, and thumbnails with frames where there is room.

        Args:
            places: (n, 2) x and y in pixels.
            paint: colour of each.
            picture: gives the photo at a place by its number.
        """
        width, height = (places.max(0) + MARGIN).tolist()
        page = Image.new("RGB", (width, height), PAPER)
        draw = ImageDraw.Draw(page)
        for (x, y), colour in zip(places.tolist(), paint, strict=True):
            draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=colour)
        for at in apart(places, self.side + 2 * FRAME)[: self.thumbnails]:
            framed = ImageOps.expand(thumbnail(picture(at), self.side), FRAME, paint[at])
            x, y = places[at].tolist()
            page.paste(framed, (x - framed.width // 2, y - framed.height // 2))
        return page


def principal(vectors: Points) -> tuple[Points, str]:
    """The first two principal components (n, 2), and what share of the variance they have."""
    rest = vectors - vectors.mean(0)
    left, spread, _ = np.linalg.svd(rest, full_matrices=False)
    share = float((spread[:2] ** 2).sum() / max((spread**2).sum(), 1e-12))
    return left[:, :2] * spread[:2], f"the first two principal components, {share:.0%} of the variance"


def neighbourly(vectors: Points, seed: int) -> tuple[Points, str]:
    """UMAP's two coordinates (n, 2) by cosine."""
    near = min(15, len(vectors) - 1)
    umap = import_module("umap").UMAP(n_neighbors=near, metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(umap.fit_transform(vectors), np.float32), f"UMAP by cosine with {near} neighbours"


def on_page(points: Points) -> Pixels:
    """Where the points lie on a page whose longer side is full: both axes by the same factor, y upwards."""
    low, high = points.min(0), points.max(0)
    away = np.stack([points[:, 0] - low[0], high[1] - points[:, 1]], axis=1)
    factor = (SIDE - 2 * MARGIN) / max(float((high - low).max()), 1e-12)
    return MARGIN + np.round(away * factor).astype(np.int64)


def coloured(kinds: list[str | None]) -> dict[str | None, str]:
    """A colour's name for each class; none at all where there are more classes than colours."""
    known = sorted({kind for kind in kinds if kind is not None})
    return dict(zip(known, COLOURS, strict=False)) if len(known) <= len(COLOURS) else {}


def apart(places: Pixels, gap: int) -> list[int]:
    """Points, in their order, of which no two are closer than `gap` in both x and y."""
    chosen: list[int] = []
    for at, place in enumerate(places):
        if not chosen or (np.abs(places[chosen] - place).max(1) >= gap).all():
            chosen.append(at)
    return chosen
