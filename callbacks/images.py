"""Shows some of what a technique got right and wrong."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from callbacks.predictions import Prediction, Rows, datamodule, gather, read


class Images(Callback):
    """Writes the pictures that the technique was surest of, right and wrong ones, after a test.

    `examples/<index>.png` and `examples.json` go to the stage's folder, and a table to W&B if it is on. Right is an
    image of which every known task is right, and it is as sure as its least sure task; wrong is one with a wrong task,
    as sure as the surest of these. Images without any label are left out.

    Args:
        count: pictures of each kind.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.kept: Rows = {}

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.kept = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.kept = surest(self.kept | read(outputs), self.count)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        chosen = surest(gather(self.kept), self.count)
        if trainer.is_global_zero:
            examples = [describe(index, row, trainer, pl_module.classes) for index, row in chosen.items()]
            path = Path(trainer.default_root_dir) / "examples.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(examples, ensure_ascii=False, indent=1), encoding="utf-8")
            log_table(trainer, examples)


def surest(predictions: Rows, count: int) -> Rows:
    """The `count` surest right and the `count` surest wrong predictions; of equals the lowest index."""
    known = {index: row for index, row in predictions.items() if any(each.truth >= 0 for each in row.values())}
    chosen: Rows = {}
    for right in (True, False):
        kind = (index for index, row in known.items() if is_right(row) is right)
        best = sorted(kind, key=lambda index: (-confidence(known[index]), index))[:count]
        chosen |= {index: known[index] for index in best}
    return chosen


def is_right(row: Mapping[str, Prediction]) -> bool:
    """Whether every task whose truth is known is right."""
    return all(each.right for each in row.values() if each.truth >= 0)


def confidence(row: Mapping[str, Prediction]) -> float:
    """How sure the row is to be shown as what it is: the least sure right task, or the surest wrong one."""
    known = [each for each in row.values() if each.truth >= 0]
    wrong = [each.confidence for each in known if not each.right]
    return max(wrong) if wrong else min(each.confidence for each in known)


def describe(
    index: int, row: Mapping[str, Prediction], trainer: Trainer, classes: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """One entry of `examples.json`; its picture is written on the way."""
    path = Path("examples") / f"{index:04d}.png"
    (Path(trainer.default_root_dir) / path).parent.mkdir(parents=True, exist_ok=True)
    pixels = datamodule(trainer).picture("test", index).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(Path(trainer.default_root_dir) / path)
    answers = [
        {
            "task": task,
            "truth": names[row[task].truth] if row[task].truth >= 0 else None,
            "guess": names[row[task].guess],
            "confidence": round(row[task].confidence, 6),
        }
        for task, names in classes.items()
    ]
    name = datamodule(trainer).name("test", index)
    return {"image": path.as_posix(), "name": name, "right": is_right(row), "answers": answers}


def log_table(trainer: Trainer, examples: Sequence[Mapping[str, Any]]) -> None:
    """The examples as a table with pictures, to each W&B logger."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb  # not before it is known to be used: it costs half a second

            table = wandb.Table(columns=["image", "name", "right", "task", "truth", "guess", "confidence"])
            for example in examples:
                picture = wandb.Image(str(Path(trainer.default_root_dir) / example["image"]))
                for answer in example["answers"]:
                    table.add_data(picture, example["name"], example["right"], *answer.values())
            logger.experiment.log({"test/examples": table})
