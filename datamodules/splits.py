"""What holds between samples: duplicates, leaks between splits, lone classes, a validation split carved from train."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datamodules.loader import Split
from datamodules.photos import Labels, Photos

Keys = Mapping[Path, bytes]  # equal where the files are equal
Splits = dict[str, Photos]

HELD_OUT = {  # who gives way to whom
    "train": ("val", "test", "predict"), "unlabelled": ("val", "test", "predict"), "val": ("test", "predict")
}  # fmt: skip


def count(n: int, noun: str) -> str:
    """A number with its noun: "1 photo", "7,000 photos"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def twins(photos: Photos, keys: Keys) -> list[list[int]]:
    """Groups of samples of one split that show the same box of the same content."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for at, path in enumerate(photos.paths):
        groups[keys[path], photos.box(at)].append(at)
    return [group for group in groups.values() if len(group) > 1]


def twin_notes(name: str, photos: Photos, keys: Keys) -> list[str]:
    """Sentences on the duplicates within one split, and on those of them that contradict each other."""
    groups = twins(photos, keys)
    if not groups:
        return []
    notes = [f"{name}: {count(len(groups), 'photo')} listed more than once, first {_pair(photos, groups[0])}"]
    torn = [group for group in groups if any(len(np.unique(ids[group])) > 1 for ids in photos.labels.values())]
    if torn:
        notes.append(f"{name}: {count(len(torn), 'duplicate')} with different labels, first {_pair(photos, torn[0])}")
    return notes


def label_notes(name: str, photos: Split, classes: Mapping[str, Sequence[str]]) -> list[str]:
    """Sentences on missing labels and, in train, on classes without a photo."""
    notes = []
    for task, ids in photos.labels.items():
        if (ids < 0).any():
            missing = count(int((ids < 0).sum()), f"{task} label")
            notes.append(f"{name}: {missing} missing, left out of the task's loss and metrics")
        absent = sorted(set(range(len(classes[task]))) - set(ids.tolist())) if name == "train" else []
        if absent:
            names = ", ".join(classes[task][at] for at in absent)
            notes.append(f"train: no photo of {task} {names}, which cannot be learned")
    return notes


def class_counts(labels: Labels, names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    """How many samples each class of each task has, by name."""
    found = {task: np.bincount(ids[ids >= 0], minlength=len(names[task])).tolist() for task, ids in labels.items()}
    return {task: dict(zip(names[task], counts, strict=True)) for task, counts in found.items()}


def one_class(train: Split, classes: Mapping[str, Sequence[str]]) -> None:
    """Refuse a task that has nothing to tell apart.

    Raises:
        ValueError: a task's training labels are all the same, or all missing.
    """
    for task, ids in train.labels.items():
        found = np.unique(ids[ids >= 0])
        if len(found) < 2:
            what = f"one class only ({classes[task][found[0]]})" if len(found) else "no label at all"
            raise ValueError(f"{task} has {what} in train, nothing to learn: take {task} out of classes, or add photos")


def _pair(photos: Photos, group: Sequence[int]) -> str:
    return " = ".join(photos.origin[at] for at in group[:2])


def leaks(splits: Splits, keys: Keys) -> dict[str, list[int]]:
    """Samples of train and val, by their places, whose content is also in a split that is held out from them."""
    content = {name: {keys[path] for path in photos.paths} for name, photos in splits.items()}
    found = {}
    for name in HELD_OUT.keys() & splits.keys():
        others: set[bytes] = set().union(*(content.get(other, set()) for other in HELD_OUT[name]))
        found[name] = [at for at, path in enumerate(splits[name].paths) if keys[path] in others]
    return {name: found[name] for name in HELD_OUT if found.get(name)}


def _across(splits: Splits, keys: Keys, name: str, at: int) -> str:
    key = keys[splits[name].paths[at]]
    for other in HELD_OUT[name]:
        for place, path in enumerate(splits[other].paths if other in splits else ()):
            if keys[path] == key:
                return f"{splits[name].origin[at]} = {splits[other].origin[place]}"
    raise AssertionError("a leak without the split it leaks into")


def leak_sentence(splits: Splits, keys: Keys, found: Mapping[str, Sequence[int]]) -> str:
    """How many photos leak from where, with the first pair of each."""
    firsts = {name: _across(splits, keys, name, places[0]) for name, places in found.items()}
    return "; ".join(
        f"{count(len(places), 'photo')} of {name} also held out in another split, first {firsts[name]}"
        for name, places in found.items()
    )


def settle_leak(sentence: str, on_leak: str) -> str:
    """The note on a leak that is not refused.

    Raises:
        ValueError: it is, with `on_leak=error`.
    """
    if on_leak == "error":
        raise ValueError(f"{sentence}: set on_leak=drop to leave them out there, or on_leak=warn to keep them")
    done = "dropped there" if on_leak == "drop" else "KEPT (on_leak=warn), so held-out results are too good"
    return f"leak: {sentence}; {done}"


def without(photos: Photos, places: Sequence[int]) -> Photos:
    """The split without the samples at these places."""
    gone = set(places)
    return photos.keep(at for at in range(len(photos)) if at not in gone)


def carve(labels: Labels, groups: Sequence[object], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split samples in two by `seed`, so that equal photos stay on one side and, if it can be, each class is on both.

    Groups of equal photos, in random order, go to the second part: first those that bring it a class that it lacks,
    then more until the share is reached; never the last of a class from the first part.

    Args:
        labels: class ids (n,) of each task, -1 where one is missing.
        groups: key of each sample; samples with the same key belong together.
        share: of the second part.
        seed: of the order.

    Returns:
        Places of the first and of the second part, each in rising order.
    """
    numbers = {key: at for at, key in enumerate(dict.fromkeys(groups))}
    group = np.array([numbers[key] for key in groups])
    classes = [ids[:, None] == np.arange(ids.max(initial=0) + 1) for ids in labels.values()]  # -1 equals none
    counts = np.zeros((len(numbers), sum(columns.shape[1] for columns in classes)), dtype=np.int64)
    np.add.at(counts, group, np.concatenate([np.zeros((len(group), 0), bool), *classes], axis=1))
    sizes, order = np.bincount(group), np.random.default_rng((seed, len(groups))).permutation(len(numbers))
    left, second, room = counts.sum(axis=0), np.zeros(len(numbers), bool), share * len(groups)
    total = left.copy()
    for only_new in (True, False):
        for at in order:
            has = counts[at] > 0
            wanted = (has & (left == total)).any() if only_new else sizes[at] <= room
            if wanted and not second[at] and not (has & (left == counts[at])).any():
                second[at] = True
                left, room = left - counts[at], room - sizes[at]
    return np.flatnonzero(~second[group]).tolist(), np.flatnonzero(second[group]).tolist()
