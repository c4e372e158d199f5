"""The labels that a person should look at first: pictures and figures for the report, and a table for W&B."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from callbacks.judgement import Judged, Key
from callbacks.predictions import datamodule


def write_review(trainer: Trainer, verdicts: Mapping[Key, Judged], names: Sequence[str], count: int) -> None:
    """Write the `count` worst labels to `review.json`, their pictures to `review/`, and both to W&B.

    Args:
        trainer: its folder and data are used; rank 0 alone calls.
        verdicts: on suspicious labels, worst first.
        names: of the photos of train, in the order of the split.
        count: labels that are shown at most.
    """
    folder = Path(trainer.default_root_dir)
    places = {name: place for place, name in enumerate(names)}
    worst = list(verdicts.items())[:count]
    shown = []
    for number, ((photo, task), verdict) in enumerate(worst, 1):
        path = Path("review") / f"{number:04d}.png"
        save_picture(datamodule(trainer), places[photo], folder / path)
        entry = {"image": path.as_posix(), "name": photo, "task": task, "label": verdict.label, "guess": verdict.guess}
        shown.append(entry | {"aum": verdict.aum, "threshold": verdict.threshold, "margins": list(verdict.margins)})
    text = json.dumps(shown, ensure_ascii=False, indent=1)
    (folder / "review.json").write_text(text + "\n", encoding="utf-8")
    log_table(trainer, shown)


def save_picture(data: Any, place: int, path: Path) -> None:
    """Save a photo of train as evaluation sees it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data.picture("train", place).permute(1, 2, 0).numpy()).save(path)


def log_table(trainer: Trainer, shown: Sequence[Mapping[str, Any]]) -> None:
    """The suspicious labels with their pictures, to each W&B logger."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb  # not before it is known to be used: it costs half a second

            columns = ["name", "task", "label", "guess", "aum", "threshold"]
            table = wandb.Table(columns=["image", *columns])
            for entry in shown:
                picture = wandb.Image(str(Path(trainer.default_root_dir) / entry["image"]))
                table.add_data(picture, *(entry[key] for key in columns))
            logger.experiment.log({"train/suspicious": table})
