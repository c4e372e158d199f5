"""Records how far the assigned class of each training photo is ahead, epoch by epoch, and judges labels by it."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.judgement import Judged, Key, judge, merge, read_judged, suggest, write_tables
from callbacks.predictions import datamodule
from callbacks.review import write_review

Form = Literal["logits", "probabilities"]
Rule = Literal["threshold", "zero"]
UNSEEN = -torch.inf


def margins(logits: Tensor, labels: Tensor, form: Form) -> Tensor:
    """The assigned class's lead over the best of the others (B,); `UNSEEN` where there is no label.

    m = z[label] − max over k ≠ label of z[k], of logits z or of their softmax

    Args:
        logits: (B, C).
        labels: (B,), −1 where one is missing.
        form: what z is.
    """
    scores = logits.softmax(1) if form == "probabilities" else logits
    own = labels.clamp(min=0)[:, None]
    lead = scores.gather(1, own)[:, 0] - scores.scatter(1, own, -torch.inf).amax(1)
    return lead.masked_fill(labels < 0, UNSEEN)


class Margins(Callback):
    """Judges each label of train by the area under its margin, for every task, and writes the verdicts.

    A network learns a photo with a wrong label late and against all that similar photos teach it: over the first epochs
    the margin of the assigned class is low, often negative. How low is suspicious the threshold samples say: photos
    that the data gave a class that does not exist (`labels.threshold`), so that their labels are wrong for certain.

    AUM = mean of the margin over the epochs;   suspicious: AUM ≤ the 99th percentile of the threshold samples

    A threshold sample is not judged itself, so there are two passes with different ones, and what both judged gets the
    mean of both. At the end the stage's folder has `margins.csv` (each label with its AUM, worst first), `kept.csv`
    (the same with an action that a person may change and the next stage obeys), and `margins.json`.

    Each margin is written by the one process that saw the photo, and kept in checkpoints: the tables do not depend on
    the number of processes, nor on whether the fit was killed and resumed. `most` is ours: where most of a class is
    suspicious it is rare or hard, not wrong.

    Reference: Pleiss et al., Identifying Mislabeled Data using the Area Under the Margin Ranking, 2020. The mean over
    both passes is ours, it repeats the training to judge the samples of the first alone; `probabilities` and `zero`
    (AUM < 0) are what an entry to the ETRI fashion challenge of 2022 did.

    Args:
        form: margins of `logits` or of `probabilities`.
        rule: `threshold`, or `zero`, which needs no threshold samples and one pass.
        percentile: of the threshold samples' AUM.
        most: share of the labels of a class that is suggested to be dropped at most, the worst of them; 1 for no bound.
        epochs: how many count; null for those before the learning rate's first drop (all, if it has no steps).
        earlier: `margins.csv` of the first pass.
        pictures: most suspicious photos that are shown.

    Raises:
        ValueError: a value outside its range; at the fit's start, data or settings with which nothing can be judged.
    """

    def __init__(
        self,
        form: Form,
        rule: Rule,
        percentile: float,
        most: float,
        epochs: int | None,
        earlier: str | None,
        pictures: int,
    ) -> None:
        for key, value, accepted in (("form", form, get_args(Form)), ("rule", rule, get_args(Rule))):
            if value not in accepted:
                raise ValueError(f"margins.{key}={value!r} is not one of: {', '.join(accepted)}.")
        if not 0 < percentile <= 100:
            raise ValueError(f"margins.percentile={percentile} must be above 0 and at most 100.")
        if not 0 < most <= 1:
            raise ValueError(f"margins.most={most} must be a share above 0, and at most 1.")
        if epochs is not None and epochs < 1:
            raise ValueError(f"margins.epochs={epochs} must be at least 1, or null.")
        self.form, self.rule, self.percentile, self.epochs = form, rule, percentile, epochs
        self.most, self.earlier, self.pictures = most, earlier, pictures
        self.tasks: list[str] = []
        self.before: dict[Key, Judged] = {}
        self.table = torch.zeros(0)  # (epochs, tasks, photos), UNSEEN where there is none
        self.guesses = torch.zeros(0)  # (tasks, photos): epoch · classes + class, so that the largest is the latest
        self.limit = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be judged before the first epoch, not after the last."""
        data: Any = datamodule(trainer)
        self.check(data)
        self.tasks = list(pl_module.classes)  # type: ignore[arg-type]
        self.limit = self.epochs or first_drop(pl_module)
        if self.earlier is not None:
            self.before = read_judged(Path(self.earlier))
            self.compare(data, pl_module.classes)  # type: ignore[arg-type]

    def check(self, data: Any) -> None:
        """Refuse data that do not go with the settings."""
        fake = getattr(data, "fake_class", None)
        if self.rule == "threshold" and fake is None:
            raise ValueError(
                "margins.rule=threshold needs threshold samples: set labels.threshold of the data to 0 in the first "
                "pass and to 1 in the second, or take margins.rule=zero."
            )
        if self.rule == "zero" and fake is not None:
            raise ValueError("margins.rule=zero needs no threshold samples: set labels.threshold of the data to null.")
        if getattr(data, "weights", None) is not None:
            raise ValueError(
                "margins are recorded with every photo once in an epoch: a balancing sampler leaves some out and "
                "repeats others, so set balance=null in this stage."
            )

    def compare(self, data: Any, classes: Mapping[str, Sequence[str]]) -> None:
        """Refuse an earlier pass over other photos, or over other labels of these."""
        places = {name: place for place, name in enumerate(data.names("train"))}
        labels = data.splits["train"].labels
        for (photo, task), first in self.before.items():
            ident = labels[task][places[photo]] if task in classes and photo in places else -1
            now = classes[task][ident] if ident >= 0 else None
            if now is None or now not in (first.label, data.fake_class):
                has = f"labelled {task} {now!r} here" if now else "not in train with such a label"
                raise ValueError(
                    f"margins.earlier={self.earlier} is of other data: {photo!r}, labelled {task} {first.label!r} in "
                    f"it, is {has}; take the first pass over these data, with the same seed."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        photos = len(datamodule(trainer).splits["train"])
        if self.table.numel() == 0:  # else the fit goes on from a checkpoint
            self.table = torch.zeros(0, len(self.tasks), photos)
            self.guesses = torch.full((len(self.tasks), photos), -1)
        self.table, self.guesses = self.table.to(pl_module.device), self.guesses.to(pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        epoch = trainer.current_epoch
        if epoch >= self.limit:
            return
        while len(self.table) <= epoch:
            self.table = torch.cat([self.table, torch.full_like(self.guesses, UNSEEN, dtype=torch.float32)[None]])
        for step in outputs.get("steps", [outputs]):
            for number, task in enumerate(self.tasks):
                self.record(epoch, number, step["logits"][task], step["labels"][task], step["index"])

    def record(self, epoch: int, task: int, logits: Tensor, labels: Tensor, index: Tensor) -> None:
        """Write one batch's margins of one task; nothing waits for the device."""
        self.table[epoch, task, index] = margins(logits, labels, self.form)
        real = logits[:, :-1] if self.rule == "threshold" else logits
        self.guesses[task, index] = epoch * logits.shape[1] + real.argmax(1)

    def state_dict(self) -> dict[str, Any]:
        """What all processes recorded so far: each cell is one process's, and unseen by the others."""
        table, guesses = self.table.clone(), self.guesses.clone()
        if dist.is_available() and dist.is_initialized() and table.numel():
            dist.all_reduce(table, dist.ReduceOp.MAX)
            dist.all_reduce(guesses, dist.ReduceOp.MAX)
        return {"table": table.cpu(), "guesses": guesses.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.table, self.guesses = state_dict["table"], state_dict["guesses"]

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        whole = self.state_dict()
        if not trainer.is_global_zero:
            return
        data = datamodule(trainer)
        names = data.names("train")
        verdicts = merge(self.judged(whole, names, data.splits["train"].labels, pl_module.classes), self.before)
        planted = {
            (names[photo], task)
            for task, wrong in getattr(data, "planted", {}).items()
            for photo in wrong.nonzero()[0].tolist()
        }
        folder = Path(trainer.default_root_dir)
        drop = suggest(verdicts, self.most)
        write_tables(folder, verdicts, drop, planted)
        worst = {key: verdict for key, verdict in verdicts.items() if key in drop}
        write_review(trainer, worst, names, self.pictures)

    def judged(
        self,
        whole: Mapping[str, Tensor],
        names: Sequence[str],
        labels: Mapping[str, Any],
        classes: Mapping[str, Sequence[str]],
    ) -> dict[Key, Judged]:
        """The verdicts of this pass."""
        percentile = self.percentile if self.rule == "threshold" else None
        found: dict[Key, Judged] = {}
        for number, task in enumerate(self.tasks):
            guesses = whole["guesses"][number] % len(classes[task])
            table, ids = whole["table"][:, number], torch.from_numpy(labels[task])
            rows = judge(table, ids, guesses, classes[task], percentile)
            found |= {(names[photo], task): row for photo, row in rows.items()}
        return found


def first_drop(module: Any) -> int:
    """Epochs before the learning rate falls for the first time; those of a smooth schedule never end."""
    optimiser: Any = getattr(module, "optimiser", None)
    return int(optimiser.decay_epochs) if getattr(optimiser, "schedule", "") == "step" else sys.maxsize
