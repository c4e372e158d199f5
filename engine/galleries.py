"""What the commands that compare photos share: a run's embedding, the index to look in, and the pictures to show."""

import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_class, get_method
from PIL import Image
from tqdm import tqdm

from engine.checkpoints import load_stage
from engine.commands.predict import find_photos
from engine.report import thumbnail

GALLERY = "callbacks.gallery.Gallery"
FINGERPRINT = "callbacks.gallery.fingerprint"
REFRESH = "callbacks.gallery_writing.refresh"
STAMP = "callbacks.gallery_writing.stamp"
MOST_NAMED = 10  # broken photos of a gallery


class Embedding:
    """What a finished stage makes of photos.

    Args:
        checkpoint: the stage's.
        device: auto, cpu, cuda, cuda:1 …
        batch_size: photos at once.

    Raises:
        ValueError: the checkpoint is not a stage's, or its technique has no single encoder.
    """

    def __init__(self, checkpoint: Path, device: str, batch_size: int) -> None:
        self.checkpoint = checkpoint
        module, self.data, self.content = load_stage(checkpoint)
        if not isinstance(getattr(getattr(module, "encoder", None), "features", None), int):
            raise ValueError(
                f"{checkpoint} holds a {type(module).__name__} without a single encoder, so there is nothing to "
                "compare photos by: name another stage or run"
            )
        self.device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self.module: Any = module.to(self.device)
        self.model: str = get_method(FINGERPRINT)(module, self.data.transform)
        self.data.batch_size = batch_size

    def __call__(self, paths: Sequence[Path], boxes: Any = None) -> tuple[list[Path], Any, dict[Path, str]]:
        """Embed photos.

        Args:
            paths: of the photos.
            boxes: the part of each photo to look at, see `DataModule.answering`.

        Returns:
            Those that could be read, their embeddings (n, D), and the others with the reason.
        """
        if not paths:
            return [], np.empty((0, 0), np.float32), {}
        loader = self.data.answering(paths, boxes)
        read, rows = [], []
        with torch.no_grad(), tqdm(total=len(paths), desc="embedded", unit="photo", disable=None) as bar:
            for batch in loader:
                read += [paths[at] for at in batch["index"].tolist()]
                batch = {key: value.to(self.device) if hasattr(value, "to") else value for key, value in batch.items()}
                rows.append(self.module.embed(batch).float().cpu().numpy())
                bar.update(len(rows[-1]))
        vectors = np.concatenate(rows) if rows else np.empty((0, 0), np.float32)
        return read, vectors, loader.dataset.broken

    @cached_property
    def pictures(self) -> Any:
        """The run's own DataModule, if its data are at hand; for pictures that lie in no file of their own."""
        try:
            self.data.setup("fit")
        except (OSError, ValueError):
            return None
        return self.data


def open_gallery(embedding: Embedding, photos: Path | None, index: Path | None) -> Any:
    """The index of a folder of photos, brought up to date; without a folder the one that the run's test wrote.

    Args:
        embedding: of the run.
        photos: folder of the photos.
        index: folder of the index, if not the usual one below the run.

    Raises:
        ValueError: there is no index or no photo, another model made the index, or it cannot be written.
    """
    checkpoint = embedding.checkpoint
    home = checkpoint.parent / checkpoint.stem
    if photos is None:
        home = index or home / "index"
        if not (home / "about.json").is_file():
            raise ValueError(
                f"{home} holds no index: the stage's `index` callback writes one after its test; or name a folder of "
                "photos with --gallery"
            )
        return get_class(GALLERY)(home).of(embedding.model)
    found, _ = find_photos([str(photos)])
    if not photos.is_dir():
        raise ValueError(f"--gallery {photos} is no folder: name the folder that holds the photos")
    root = photos.resolve()
    digest = sha256(str(root).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    names = [path.relative_to(photos).as_posix() for path in found]

    def embed(new: Sequence[str]) -> tuple[list[str], Any]:
        read, vectors, broken = embedding([root / name for name in new])
        name_broken("not in the gallery", {str(path): why for path, why in broken.items()})
        return [path.relative_to(root).as_posix() for path in read], vectors

    return get_method(REFRESH)(
        index or home / "galleries" / f"{root.name}-{digest}", root, names, embedding.model, embed
    )


def name_broken(what: str, broken: Mapping[str, str]) -> None:
    """Say which photos could not be read, the first few by name."""
    for path, why in sorted(broken.items())[:MOST_NAMED]:  # threads found them in any order
        print(f"{what}: {legible(path)}: {why}", file=sys.stderr)
    if len(broken) > MOST_NAMED:
        print(f"{what}: {len(broken) - MOST_NAMED:,} more", file=sys.stderr)


def shown_name(gallery: Any, place: int) -> str:
    """A photo's path, or, where it lies in no file of its own, its name in the data set."""
    return legible(gallery.path(place) if gallery.stamps[place, 0] >= 0 else gallery.names[place])


def legible(path: Path | str) -> str:
    """A path that can be printed: bytes in it that are no text become a replacement character."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def stored(gallery: Any, paths: Sequence[Path]) -> dict[Path, int]:
    """Those of some photos that the index has as they are now, with their places in it."""
    root = gallery.root.resolve()
    there = ((path, path.parent.resolve() / path.name) for path in paths)
    names = {place.relative_to(root).as_posix(): path for path, place in there if place.is_relative_to(root)}
    found = {names[name]: place for place, name in enumerate(gallery.names if names else ()) if name in names}
    return {path: at for path, at in found.items() if get_method(STAMP)(path) == tuple(gallery.stamps[at].tolist())}


def card(gallery: Any, place: int, cosine: float, embedding: Embedding) -> dict[str, Any]:
    """What a page shows of a photo that was found."""
    name, picture = legible(gallery.names[place]), picture_of(gallery, place, embedding)
    return {"name": name, "cosine": cosine, "uri": thumbnail(picture)}


def picture_of(gallery: Any, place: int, embedding: Embedding) -> Path | Image.Image | None:
    """A photo's file, or what the run's data have under its name."""
    if gallery.stamps[place, 0] >= 0:
        return Path(gallery.path(place))
    if embedding.pictures is None:
        return None
    for split, count in gallery.about.get("splits", []):
        if place < count:
            return Image.fromarray(embedding.pictures.picture(split, place).permute(1, 2, 0).numpy())
        place -= count
    return None


def looked_at(embedding: Embedding, boxes: Any, own: bool) -> str:
    """A sentence on which part of each query was compared; `own`: with the run's own photos, which may have boxes."""
    if boxes:
        return "Boxes were given: of each query the part in its box was compared."
    if not own or "margin" not in embedding.content["stage"]["data"]:
        return "Whole photos were compared."
    return (
        "The run knows its photos by boxes around the subject. A query that is one of them was compared so, any other "
        "as a whole; --boxes CSV gives such boxes."
    )
