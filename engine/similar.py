"""What is most like a photo in a run's own index: one photo of each folder, so that of a product there is one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.galleries import Embedding, card, open_gallery

MORE = 8  # photos looked at for each that is shown, since a product has several


def similar(
    embedding: Embedding, paths: Sequence[Path], count: int, pictures: bool
) -> dict[Path, list[dict[str, Any]]]:
    """For each photo that can be read the `count` most similar folders, best first, by their nearest photo.

    Args:
        embedding: Of the run, whose test wrote an index.
        paths: Of the photos.
        count: Folders wanted.
        pictures: Whether to add a thumbnail of each.

    Raises:
        ValueError: The run has no index, or another network made it.
    """
    gallery = open_gallery(embedding, None, None)
    read, vectors, _ = embedding(paths)
    if not read:
        return {}
    cosines, places = gallery.search(vectors, min(len(gallery), count * MORE))
    found = {}
    for path, near, at in zip(read, cosines.tolist(), places.tolist(), strict=True):
        best: dict[str, tuple[float, int]] = {}
        for cosine, place in zip(near, at, strict=True):
            best.setdefault(Path(gallery.names[place]).parent.as_posix(), (cosine, place))
        chosen = list(best.items())[:count]
        cards = [
            card(gallery, place, cosine, embedding) if pictures else {"cosine": cosine} for _, (cosine, place) in chosen
        ]
        found[path] = [{**each, "name": folder} for each, (folder, _) in zip(cards, chosen, strict=True)]
    return found
