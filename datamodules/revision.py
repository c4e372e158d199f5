"""What becomes of the labels of train before anything learns from them; those of val and test are never touched.

In this order: errors planted on purpose, the verdicts of an earlier stage or of a person, threshold samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from datamodules.tables import MISSING
from datamodules.verdicts import Labels, Verdicts, read_verdicts

THRESHOLD = "(threshold)"  # the class of threshold samples
UNITS = ("label", "photo")
FLIPS, SAMPLES = 1, 2  # keep the two draws apart

Implied = Mapping[str, tuple[str, Sequence[int]]]


@dataclass
class Revised:
    """Labels of train after a revision.

    Args:
        labels: class ids (n,) of each task, -1 where there is none any more.
        planted: which labels of each task were made wrong; empty if none were.
        dropped: (n,) photos of which a label was dropped.
        gone: (n,) photos that are to leave train as a whole.
        notes: sentences on what was done.
    """

    labels: Labels
    planted: dict[str, NDArray[np.bool_]]
    dropped: NDArray[np.bool_]
    gone: NDArray[np.bool_]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Revision:
    """Changes of the labels of train; those that are left out are off.

    Args:
        flip: share of the labels of each task that becomes another class, uniformly at random: planted errors, to see
            whether they are found again.
        kept: CSV of verdicts (keep, drop, relabel) on labels, see `verdicts.py`.
        unit: what a verdict drops: the `label` of its task, or the `photo` with all of its labels.
        threshold: 0 or 1. The first or the second N / (c + 1) labels of each task, in an order by seed, become a class
            of their own, on which the others are measured. Two passes, one with each, judge every photo.

    Reference: threshold samples, Pleiss et al., Identifying Mislabeled Data using the Area Under the Margin Ranking,
    2020, section 3.2.
    """

    flip: float = 0.0
    kept: str | None = None
    unit: str = "label"
    threshold: int | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None) -> Self:
        """From a mapping in YAML.

        Raises:
            ValueError: an unknown name, or a value outside its range.
        """
        known = [field.name for field in fields(cls)]
        for name in settings or {}:
            if name not in known:
                raise ValueError(f"labels has no setting {name!r}; it has {', '.join(known)}")
        revision = cls(**(settings or {}))
        share = revision.flip
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(f"labels.flip={share!r} is not a share of the labels from 0 to below 1")
        if revision.unit not in UNITS:
            raise ValueError(f"labels.unit={revision.unit!r} is not one of {', '.join(UNITS)}")
        if revision.threshold not in (None, 0, 1) or isinstance(revision.threshold, bool):
            raise ValueError(f"labels.threshold={revision.threshold!r} is neither 0 nor 1 (a pass) nor null for none")
        if revision.threshold is not None and revision.kept is not None:
            raise ValueError("labels.threshold judges all labels, labels.kept obeys the verdicts: set one of them")
        return revision

    def apply(
        self,
        labels: Mapping[str, NDArray[np.int64]],
        names: Sequence[str],
        classes: Mapping[str, Sequence[str]],
        seed: int,
        implied: Implied | None = None,
    ) -> Revised:
        """The labels of train as they are to be learned.

        Args:
            labels: class ids (n,) of each task, -1 where one is missing.
            names: of the photos, each once.
            classes: names of the classes of each task.
            seed: of what is drawn.
            implied: {task: (another task, the class that goes with each of its)} of tasks whose label the other's
                decides: no errors are planted in them, and they change with it.

        Raises:
            FileNotFoundError: there is no file of verdicts.
            ValueError: it does not fit these data, or leaves nothing of a class.
        """
        none = np.zeros(len(names), bool)
        done = Revised({task: ids.copy() for task, ids in labels.items()}, {}, none, none)
        if self.flip:
            done.planted = plant(done.labels, classes, self.flip, seed, implied or {})
            done.notes.append(f"labels: {_sum(done.planted)} labels of train made wrong on purpose (seed {seed})")
        if self.kept is not None:
            self._obey(done, read_verdicts(Path(self.kept), names, done.labels, classes), classes, implied or {})
        if self.threshold is not None:
            taken = set_apart(done.labels, classes, self.threshold, seed)
            done.notes.append(f"labels: {_sum(taken)} labels of train are threshold samples (pass {self.threshold})")
        return done

    def _obey(self, done: Revised, verdicts: Verdicts, classes: Mapping[str, Sequence[str]], implied: Implied) -> None:
        """Lay the verdicts over the labels."""
        before, done.labels = done.labels, verdicts.labels
        follow(done.labels, before, implied)
        done.dropped = np.any(list(verdicts.drop.values()), axis=0)
        done.gone = done.dropped if self.unit == "photo" else np.zeros_like(done.dropped)
        relabelled = sum(int((done.labels[task] != ids).sum()) for task, ids in before.items())
        for task, drop in verdicts.drop.items():
            done.labels[task][drop | done.gone] = MISSING
        counts = {task: int(drop.sum()) for task, drop in verdicts.drop.items() if drop.any()}
        by_task = ", ".join(f"{n:,} {task}" for task, n in counts.items()) or "no"
        photos = f", with them {int(done.gone.sum()):,} photos" if done.gone.any() else ""
        done.notes.append(f"labels: {by_task} labels dropped{photos}, {relabelled:,} changed ({self.kept})")
        _refuse_lost(before, done.labels, classes, str(self.kept))


def plant(
    labels: Labels, classes: Mapping[str, Sequence[str]], share: float, seed: int, implied: Implied
) -> dict[str, NDArray[np.bool_]]:
    """Make a share of each task's labels wrong, in place; returns which."""
    planted, before = {}, {task: ids.copy() for task, ids in labels.items()}
    for number, (task, ids) in enumerate(labels.items()):
        if task in implied:
            continue
        rng = np.random.default_rng((seed, FLIPS, number))
        order = rng.permutation(np.flatnonzero(ids != MISSING))
        wrong, count = order[: round(share * len(order))], len(classes[task])
        ids[wrong] = (ids[wrong] + rng.integers(1, count, len(wrong))) % count
        planted[task] = np.isin(np.arange(len(ids)), wrong)
    follow(labels, before, implied)
    return planted | {task: labels[task] != before[task] for task in implied}


def follow(labels: Labels, before: Labels, implied: Implied) -> None:
    """Where a label changed, change in place those that it decides."""
    for task, (other, decided) in implied.items():
        moved = labels[other] != before[other]
        labels[task][moved] = np.asarray(decided)[labels[other][moved]]


def set_apart(
    labels: Labels, classes: Mapping[str, Sequence[str]], part: int, seed: int
) -> dict[str, NDArray[np.bool_]]:
    """Give N / (c + 1) labels of each task, the `part`-th so many of an order, the class c, in place; returns which.

    Raises:
        ValueError: there are too few labels.
    """
    taken = {}
    for number, (task, ids) in enumerate(labels.items()):
        order = np.random.default_rng((seed, SAMPLES, number)).permutation(np.flatnonzero(ids != MISSING))
        size = round(len(order) / (len(classes[task]) + 1))
        if size < 1:
            raise ValueError(
                f"labels.threshold={part}: {task} has {len(order)} labels in train, too few for threshold samples of "
                f"its {len(classes[task])} classes"
            )
        own = order[part * size : (part + 1) * size]
        ids[own] = len(classes[task])
        taken[task] = np.isin(np.arange(len(ids)), own)
    return taken


def _sum(chosen: Mapping[str, NDArray[np.bool_]]) -> str:
    return ", ".join(f"{int(which.sum()):,} {task}" for task, which in chosen.items())


def _refuse_lost(before: Labels, after: Labels, classes: Mapping[str, Sequence[str]], kept: str) -> None:
    """Refuse verdicts that leave a task or a class without a label.

    Raises:
        ValueError: they do.
    """
    for task, names in classes.items():
        was = np.bincount(before[task][before[task] != MISSING], minlength=len(names))
        now = np.bincount(after[task][after[task] != MISSING], minlength=len(names))
        if was.any() and not now.any():
            raise ValueError(
                f"{kept} drops all {was.sum():,} {task} labels of train: keep some, there is nothing to learn"
            )
        lost = np.flatnonzero((was > 0) & (now == 0))
        if len(lost):
            named = ", ".join(f"{names[at]} ({was[at]:,})" for at in lost.tolist())
            raise ValueError(f"{kept} leaves no label of {task} {named}: keep some, or take these classes out")
