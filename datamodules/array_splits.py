"""What holds between images in arrays: equal ones, leaks, shares with each class in proportion; in whole batches."""

from collections.abc import Iterator, Mapping
from hashlib import blake2b

import numpy as np

from datamodules.arrays import Arrays, Places
from datamodules.photos import Photos
from datamodules.splits import HELD_OUT, count

ArraySplits = dict[str, Arrays]

CHUNK = 1024  # images that are looked at together


def number_contents(splits: Mapping[str, Arrays]) -> None:
    """Give the images of all splits numbers, in `content`, that are equal where two images are equal in each pixel.

    Images whose middle columns differ differ; the few that agree there are compared whole.
    """
    columns = np.concatenate([split.column() for split in splits.values()])
    numbers = np.unique(columns.view(f"V{columns.shape[1]}").ravel(), return_inverse=True)[1]
    often = np.bincount(numbers)[numbers] > 1
    whole: dict[bytes, int] = {}
    begin = 0
    for split in splits.values():
        here = slice(begin, begin + len(split))
        begin, split.content = here.stop, numbers[here]
        unsure = np.flatnonzero(often[here])
        split.content[unsure] = [whole.setdefault(key, len(numbers) + len(whole)) for key in _digests(split, unsure)]


def _digests(split: Arrays, places: Places) -> Iterator[bytes]:
    side = split.blocks[0].pixels.shape[1:]
    for begin in range(0, len(places), CHUNK):
        index = places[begin : begin + CHUNK]
        pixels = np.empty((len(index), *side), np.uint8)
        split.read(index, pixels, np.arange(len(index)))
        yield from (blake2b(image.data, digest_size=16).digest() for image in pixels)


def equal_pictures(photos: Photos, splits: Mapping[str, Arrays]) -> dict[int, str]:
    """Photos, by their places, that have the pixels of an image of some split, with the image's name."""
    held = {
        digest: f"{name} {split.name(at)}"
        for name, split in splits.items()
        for at, digest in enumerate(_digests(split, np.arange(len(split))))
    }
    found = {}
    for at in range(len(photos)):
        pixels = np.ascontiguousarray(photos[at]["image"].permute(1, 2, 0).numpy())
        digest = blake2b(pixels.data, digest_size=16).digest()
        if digest in held:
            found[at] = held[digest]
    return found


def twin_notes(name: str, split: Arrays) -> list[str]:
    """Sentences on the images that a split has more than once, and on those of them with different labels."""
    _, group, sizes = np.unique(split.content, return_inverse=True, return_counts=True)
    found = {"there more than once": np.flatnonzero(sizes > 1)}
    for task, ids in split.labels.items():
        once_a_label = np.unique(np.stack([group, ids])[:, ids >= 0], axis=1)[0]
        found[f"there with different labels of {task}"] = np.flatnonzero(np.bincount(once_a_label) > 1)
    notes = []
    for what, groups in found.items():
        if len(groups):
            pair = " = ".join(split.name(int(at)) for at in np.flatnonzero(group == groups[0])[:2])
            notes.append(f"{name}: {count(len(groups), 'image')} {what}, first {pair}")
    return notes


def leaks(splits: Mapping[str, Arrays]) -> dict[str, Places]:
    """Images of train and val, by their places, that are also in a split that is held out from them."""
    found = {}
    for name, held_out in HELD_OUT.items():
        others = [splits[other].content for other in held_out if other in splits]
        if name in splits and others:
            found[name] = np.flatnonzero(np.isin(splits[name].content, np.concatenate(others)))
    return {name: places for name, places in found.items() if len(places)}


def leak_sentence(splits: Mapping[str, Arrays], found: Mapping[str, Places]) -> str:
    """How many images leak from where, with the first pair of each."""
    parts = []
    for name, places in found.items():
        first = int(places[0])
        held_out = [splits[other] for other in HELD_OUT[name] if other in splits]
        twins = (
            other.name(int(at))
            for other in held_out
            for at in np.flatnonzero(other.content == splits[name].content[first])
        )
        pair = f"{splits[name].name(first)} = {next(twins)}"
        parts.append(f"{count(len(places), 'image')} of {name} also held out in another split, first {pair}")
    return "; ".join(parts)


def in_proportion(classes: Places, seed: int) -> Places:
    """All places in a random order whose every beginning has the classes in proportion, and first one of each.

    The k-th of the n images of a class, in random order, comes at k / n. A smaller share is so a part of a larger one.

    Args:
        classes: (n,) class of each image.
        seed: of the order.
    """
    order = np.random.default_rng((seed, len(classes))).permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    share = (np.arange(len(order)) - np.repeat(starts, sizes)) / np.repeat(sizes, sizes)
    return order[np.argsort(share, kind="stable")]


def carve(split: Arrays, classes: Places, share: float, seed: int) -> tuple[Places, Places]:
    """Places that stay, and a share of the labelled ones that is set aside: per class, equal images on one side.

    Args:
        split: what to share out; its unlabelled images (-1) stay.
        classes: (n,) class of each image.
        share: of the labelled images that is set aside.
        seed: of the choice.

    Raises:
        ValueError: nothing can be set aside, since each class must keep an image.
    """
    labelled = np.flatnonzero(classes >= 0)
    single = np.sort(labelled[np.unique(split.content[labelled], return_index=True)[1]])
    most = len(single) - len(np.unique(classes[single]))
    size = min(max(1, round(share * len(single))), most)
    if size < 1:
        raise ValueError(f"val_share={share} of {count(len(single), 'image')} leaves nothing to train on: set it to 0")
    aside = split.content[single[in_proportion(classes[single], seed)][-size:]]
    chosen = np.isin(split.content, aside) & (classes >= 0)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
