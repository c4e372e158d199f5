"""Writes what a technique said about each image of a split."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning import Callback, Trainer


@dataclass(frozen=True)
class Prediction:
    """One task's answer for one image.

    Args:
        truth: class id; −1 if nobody knows.
        guess: class id.
        confidence: probability of the guess.
    """

    truth: int
    guess: int
    confidence: float

    @property
    def right(self) -> bool:
        """Whether the guess is the truth."""
        return self.truth == self.guess


Rows = dict[int, dict[str, Prediction]]


def read(outputs: Mapping[str, Any]) -> Rows:
    """The predictions of a batch, {index: {task: prediction}}.

    Args:
        outputs: what a step returned: `logits` {task: (B, C)}, `index` (B,), and `labels` {task: (B,)} if known.
    """
    indices = outputs["index"].tolist()
    columns = {}
    for task, logits in outputs["logits"].items():
        confidence, guess = logits.float().softmax(1).max(1)
        truth = outputs["labels"][task].tolist() if "labels" in outputs else [-1] * len(indices)
        rows = zip(truth, guess.tolist(), confidence.tolist(), strict=True)
        columns[task] = [Prediction(*row) for row in rows]
    return {index: {task: column[row] for task, column in columns.items()} for row, index in enumerate(indices)}


def gather(predictions: Rows) -> Rows:
    """The predictions of all ranks, by index. A collective: every rank must call it."""
    parts: list[Rows] = [predictions]
    if dist.is_available() and dist.is_initialized():
        parts = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, predictions)
    return dict(sorted((index, row) for part in parts for index, row in part.items()))


class Predictions(Callback):
    """Writes `predictions.csv` after a test, and `submission.csv` after a prediction of a split without labels.

    `predictions.csv` has a row for each image: its name and, for each task, truth, guess (names) and confidence.
    `submission.csv` has the image's name and one column of class ids a task, as leaderboards want it.

    Args:
        name_column: heading of the images' names in `submission.csv`.
    """

    def __init__(self, name_column: str = "image_name") -> None:
        self.name_column = name_column
        self.predictions: Rows = {}

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.predictions = {}

    on_predict_start = on_test_start

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.predictions |= read(outputs)

    on_predict_batch_end = on_test_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        predictions = gather(self.predictions)
        if trainer.is_global_zero:
            classes = pl_module.classes
            heading = [field for task in classes for field in (task, f"{task}_guess", f"{task}_confidence")]
            rows = (labelled(name, row, classes) for name, row in named(predictions, trainer, "test"))
            write_csv(Path(trainer.default_root_dir) / "predictions.csv", ["name", *heading], rows)

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        predictions = gather(self.predictions)
        if trainer.is_global_zero:
            tasks = list(pl_module.classes)
            rows = ([name, *(row[t].guess for t in tasks)] for name, row in named(predictions, trainer, "predict"))
            write_csv(Path(trainer.default_root_dir) / "submission.csv", [self.name_column, *tasks], rows)


def named(predictions: Rows, trainer: Trainer, split: str) -> Iterable[tuple[str, dict[str, Prediction]]]:
    """(name of the image, its predictions), in the order of the split."""
    data = datamodule(trainer)
    return ((data.name(split, index), row) for index, row in predictions.items())


def datamodule(trainer: Trainer) -> Any:
    """The DataModule that a trainer works with."""
    return trainer.datamodule  # type: ignore[attr-defined]  # set by the trainer's data connector


def labelled(name: str, row: Mapping[str, Prediction], classes: Mapping[str, Sequence[str]]) -> list[str]:
    """A row of `predictions.csv`."""
    fields = [name]
    for task, names in classes.items():
        answer = row[task]
        fields += [names[answer.truth] if answer.truth >= 0 else "", names[answer.guess], f"{answer.confidence:.6f}"]
    return fields


def write_csv(path: Path, heading: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a table as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([heading, *rows])
