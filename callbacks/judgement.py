"""From recorded margins to verdicts on labels, and their tables: `margins.csv`, `kept.csv`, `margins.json`."""

import csv
import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from callbacks.predictions import write_csv

HEADING = ("photo", "task", "label", "aum", "threshold", "guess", "suggestion", "margins")
ACTIONS = ("photo", "task", "label", "guess", "aum", "action", "relabel_to")
Key = tuple[str, str]  # photo, task


@dataclass(frozen=True)
class Judged:
    """One label and what its margins say.

    Args:
        label: the class that it says.
        aum: mean margin.
        threshold: at or below which it is suspicious.
        guess: the class that the network would have said at last.
        margins: of each epoch that saw it.
    """

    label: str
    aum: float
    threshold: float
    guess: str
    margins: tuple[float, ...]

    @property
    def suspicious(self) -> bool:
        """Whether the label is thought to be wrong."""
        return self.aum <= self.threshold

    @property
    def excess(self) -> float:
        """How far it lies above the threshold: what labels are ordered by."""
        return self.aum - self.threshold


def judge(
    table: Tensor, labels: Tensor, guesses: Tensor, classes: Sequence[str], percentile: float | None
) -> dict[int, Judged]:
    """The verdict on each photo's label of one task that was seen and is no threshold sample, by place.

    Args:
        table: (epochs, photos) margins, −inf where there is none.
        labels: (photos,) class ids.
        guesses: (photos,) class ids.
        classes: their names; with threshold samples the last one is theirs.
        percentile: of the threshold samples' AUM that is the threshold; None for a threshold just below 0.

    Raises:
        ValueError: no threshold sample was seen.
    """
    seen = table > -torch.inf
    aum = table.double().masked_fill(~seen, 0).sum(0) / seen.sum(0)  # NaN for a photo that was never seen
    threshold, judged = -math.ulp(0.0), seen.any(0)
    if percentile is not None:
        fake = (labels == len(classes) - 1) & judged
        if not fake.any():
            raise ValueError("no threshold sample was trained on: the fit is too short to judge labels.")
        threshold, judged = float(torch.quantile(aum[fake], percentile / 100)), judged & ~fake
    rows = zip(aum.tolist(), labels.tolist(), guesses.tolist(), table.T.tolist(), strict=True)
    verdicts = {}
    for photo, (area, label, guess, curve) in enumerate(rows):
        if judged[photo]:
            curve = tuple(round(value, 4) for value in curve if value > -math.inf)
            verdicts[photo] = Judged(classes[label], area, threshold, classes[guess], curve)
    return verdicts


def merge(now: Mapping[Key, Judged], before: Mapping[Key, Judged]) -> dict[Key, Judged]:
    """The verdicts of two passes as one, worst first; what both judged has the mean of both, and the later guess."""
    merged = dict(before)
    for key, verdict in now.items():
        if key in before:
            first = before[key]
            area, threshold = (first.aum + verdict.aum) / 2, (first.threshold + verdict.threshold) / 2
            verdict = replace(verdict, aum=area, threshold=threshold)
        merged[key] = verdict
    return dict(sorted(merged.items(), key=lambda item: (item[1].excess, item[0])))


def read_judged(path: Path) -> dict[Key, Judged]:
    """The verdicts of an earlier pass.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table of margins, or a row of it is cut off or changed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"margins.earlier={path}: there is no such file; the first pass must run before.")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != HEADING:
            raise ValueError(
                f"margins.earlier={path} is no margins.csv: its columns are {', '.join(reader.fieldnames or ())}, not "
                f"{', '.join(HEADING)}."
            )
        found = {}
        for row in reader:
            try:
                found[row["photo"], row["task"]] = parsed(row)
            except (AttributeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"margins.earlier={path} row {reader.line_num} has no numbers where the AUM, the threshold and the "
                    "margins stand: make the first pass again; a person's changes belong in kept.csv."
                ) from error
        return found


def parsed(row: Mapping[str, str]) -> Judged:
    """One row of `margins.csv`."""
    curve = tuple(map(float, row["margins"].split()))
    return Judged(row["label"], float(row["aum"]), float(row["threshold"]), row["guess"], curve)


def suggest(verdicts: Mapping[Key, Judged], most: float) -> set[Key]:
    """The suspicious labels, of each class no more than a share.

    Where most of a class is suspicious it is rare or hard, and the network had no time to learn it: dropped as a whole
    it never would.

    Args:
        verdicts: worst first.
        most: share of the labels of a class that may be dropped, the worst of them.
    """
    left = {name: int(most * n) for name, n in Counter((key[1], v.label) for key, v in verdicts.items()).items()}
    drop = set()
    for key, verdict in verdicts.items():
        if verdict.suspicious and left[key[1], verdict.label]:
            left[key[1], verdict.label] -= 1
            drop.add(key)
    return drop


def write_tables(folder: Path, verdicts: Mapping[Key, Judged], drop: Collection[Key], planted: Collection[Key]) -> None:
    """Write the three tables, worst label first; `kept.csv` last, for it is what another stage waits for.

    Args:
        folder: of the stage.
        verdicts: in their order.
        drop: labels that are suggested to be dropped.
        planted: labels that are known to be wrong; empty if nobody knows.
    """
    action = {key: "drop" if key in drop else "keep" for key in verdicts}
    rows = (
        [*key, v.label, repr(v.aum), repr(v.threshold), v.guess, action[key], curve(v)] for key, v in verdicts.items()
    )
    write_csv(folder / "margins.csv", HEADING, rows)
    summary = json.dumps(summarise(verdicts, drop, planted), ensure_ascii=False, indent=1)
    (folder / "margins.json").write_text(summary + "\n", encoding="utf-8")
    actions = ([*key, v.label, v.guess, f"{v.aum:.4f}", action[key], ""] for key, v in verdicts.items())
    write_csv(folder / "kept.csv", ACTIONS, actions)


def curve(verdict: Judged) -> str:
    """The margins as one cell."""
    return " ".join(f"{value:g}" for value in verdict.margins)


def summarise(verdicts: Mapping[Key, Judged], drop: Collection[Key], planted: Collection[Key]) -> dict[str, Any]:
    """For each task the labels judged and found suspicious, by class too, since rare classes have low margins.

    The threshold is beside them, and where errors were planted how well they were found again.
    """
    summary: dict[str, Any] = {}
    for task in dict.fromkeys(task for _, task in verdicts):
        own = {key: verdict for key, verdict in verdicts.items() if key[1] == task}
        flagged = own.keys() & set(drop)
        judged, suspicious = Counter(v.label for v in own.values()), Counter(own[key].label for key in flagged)
        classes = {name: {"judged": n, "suspicious": suspicious[name]} for name, n in judged.most_common()}
        threshold = sum(verdict.threshold for verdict in own.values()) / len(own)
        entry = {"judged": len(own), "suspicious": len(flagged), "threshold": threshold, "classes": classes}
        summary[task] = entry | (found_again(flagged, own.keys() & set(planted)) if planted else {})
    return summary


def found_again(flagged: Collection[Key], planted: Collection[Key]) -> dict[str, float]:
    """How well the suspicious labels are the planted errors."""
    hits = len(set(flagged) & set(planted))
    return {
        "planted": len(planted),
        "precision": hits / len(flagged) if flagged else 0.0,
        "recall": hits / len(planted) if planted else 0.0,
    }
