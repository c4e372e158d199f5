"""What each section of the report says: the files of a run turned into curves, matrices, examples and short tables."""

import base64
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from engine.plots import Curve, Picture, confusion, curves, reduced
from engine.plots import smooth as smoothed
from engine.record import Record, Run, Stage
from engine.results import epoch_number, judged, metric_name, split_key

ANSWER: Record = {"task": "", "truth": None, "guess": "", "confidence": None}
MOST_EXAMPLES = 24
MOST_PICTURES = 36
MOST_CLASS_ROWS = 30
MOST_PANELS = 10
MOST_MISTAKES = 6
MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif"}


def data_uri(content: bytes | str, mime: str) -> str:
    """A picture as an address that holds the picture itself."""
    raw = content.encode() if isinstance(content, str) else content
    return f"data:{mime};base64,{base64.b64encode(raw).decode()}"


def picture_view(picture: Picture, **more: Any) -> Record:
    """A drawn picture for the page; `more` goes along."""
    return {"uri": data_uri(picture.svg, "image/svg+xml"), "alt": picture.alt, "legend": picture.legend, **more}


def overview(run: Run) -> list[Record]:
    """One row a stage: technique, encoder, data, epochs, state."""
    rows = []
    for stage in run.stages:
        module, data = stage.config.get("module") or {}, stage.config.get("data") or {}
        encoder = module.get("encoder") or {}
        known = [str(encoder[key]) for key in ("name", "weights") if encoder.get(key) is not None]
        planned = (stage.config.get("trainer") or {}).get("max_epochs")
        reached = stage.done.get("epochs") or max(map(epoch_number, stage.rows), default=None)
        row = {"name": stage.name, "state": run.state_of(stage), "technique": _class(module.get("_target_"))}
        row |= {"encoder": ", weights ".join(known), "data": _class(stage.data.get("target") or data.get("_target_"))}
        rows.append(row | {"epochs": reached, "planned": planned if planned not in (reached, -1) else None})
    return rows


def learning_curves(run: Run, stage: Stage) -> list[Record]:
    """Loss by step; the judged metric by task, the other validation metrics and further training terms beside it."""
    best = stage.done.get("best") or {}
    kept = epoch_number(best) if best.get("epoch") is not None else None
    pictures = _loss_panel(stage, kept) + _metric_panels(run, stage, kept)
    return [picture_view(picture) for picture in pictures]


def _loss_panel(stage: Stage, kept: int | None) -> list[Picture]:
    lines = [_trained(stage, "train/loss", "train")] if _column(stage.rows, "train/loss")[0] else []
    steps, losses = _column(stage.rows, "val/loss")
    lines += [Curve("validation", steps, losses)] if steps else []
    mark = next((row.get("step") for row in stage.validation() if epoch_number(row) == kept), None)
    pictures = [curves(lines, "step", "Loss", mark)] if lines else []
    terms = [key for key in _keys(stage.rows, "train/") if key != "train/loss"][:6]
    if terms:
        pictures.append(curves([_trained(stage, key, key[6:]) for key in terms], "step", "Other terms in training"))
    return pictures


def _metric_panels(run: Run, stage: Stage, kept: int | None) -> list[Picture]:
    """Shares together on one scale, any other figure on a scale of its own."""
    rows = stage.validation()
    keys = [key for key in _keys(rows, "val/") if split_key(key)[2] != "loss"]
    leading = split_key(judged(run, stage))[2]
    by_task = [key for key in keys if split_key(key)[2] == leading]
    overall = [key for key in keys if not split_key(key)[1]]
    shares = [key for key in overall if all(0 <= value <= 1 for value in _column(rows, key)[1])]
    panels = [(by_task, f"Validation {metric_name(leading)} by task")] if len(by_task) > 1 else []
    several = ", mean over the tasks" if len(by_task) > 1 else ""
    panels += [(shares, f"Validation metrics{several}")] if shares else []
    panels += [([key], f"Validation {metric_name(split_key(key)[2])}") for key in overall if key not in shares]
    return [
        curves([_validated(rows, key, by_task is keys) for key in keys], "epoch", title, kept)
        for keys, title in panels[:MOST_PANELS]
    ]


def _validated(rows: Sequence[Record], key: str, by_task: bool) -> Curve:
    _, task, metric = split_key(key)
    epochs, values = _column(rows, key, "epoch")
    return Curve((task or "mean") if by_task else metric_name(metric), epochs, values, strong=by_task and not task)


def _trained(stage: Stage, key: str, name: str) -> Curve:
    """A term of every step: the raw values faint, their running mean over a fortieth of the fit in front."""
    steps, values = _column(stage.rows, key)
    return Curve(name, steps, smoothed(values, max(1, len(values) // 40)), faint=values)


def _column(rows: Iterable[Record], key: str, by: str = "step") -> tuple[list[float], list[float]]:
    pairs = [
        (epoch_number(r) if by == "epoch" else r.get(by, i), r[key]) for i, r in enumerate(rows) if _number(r.get(key))
    ]
    return [float(x) for x, _ in pairs], [float(y) for _, y in pairs]


def _keys(rows: Iterable[Record], prefix: str) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row if key.startswith(prefix) and _number(row[key])))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def confusions(stage: Stage) -> list[Record]:
    """One matrix for each split and task, with its commonest mistakes in words."""
    views = []
    for split, tasks in stage.confusion.items():
        for task, table in tasks.items():
            matrix, classes = table.get("matrix") or [], table.get("classes") or []
            if matrix and sum(map(sum, matrix)):
                picture = confusion(matrix, classes, task)
                size = len(reduced(matrix, classes)[1])
                more = {"task": task, "split": split, "size": size, "classes": len(matrix)}
                views.append(picture_view(picture, mistakes=_mistakes(matrix, classes), **more))
    return views


def _mistakes(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> list[Record]:
    wrong = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if n and i != j]
    worst = sorted(wrong, key=lambda mistake: -mistake[0])[:MOST_MISTAKES]
    names = [str(classes[i]) if i < len(classes) else str(i) for i in range(len(matrix))]
    return [{"truth": names[i], "guess": names[j], "count": n, "share": n / sum(matrix[i])} for n, i, j in worst]


def examples(stage: Stage) -> dict[str, list[Record]]:
    """Pictures with their answers, the wrong ones and the right ones, at most 24 of each."""
    views: dict[str, list[Record]] = {"wrong": [], "right": []}
    for example in stage.examples:
        group = views["right" if example.get("right") else "wrong"]
        if len(group) < MOST_EXAMPLES:
            answers = [ANSWER | answer | {"right": _right(answer)} for answer in example.get("answers") or []]
            uri = embedded(stage.folder, str(example.get("image", "")))
            group.append({"uri": uri, "name": example.get("name", ""), "answers": answers})
    return views


def pictures(stage: Stage) -> list[Record]:
    """What callbacks drew: title, picture and caption of each."""
    entries = stage.pictures[:MOST_PICTURES]
    return [
        {key: str(entry.get(key, "")) for key in ("title", "caption")}
        | {"uri": embedded(stage.folder, str(entry.get("image", "")))}
        for entry in entries
    ]


def _right(answer: Record) -> bool | None:
    """Whether an answer is right; None where the photo has no label for the task."""
    return None if answer.get("truth") is None else answer["truth"] == answer.get("guess")


def embedded(folder: Path, name: str) -> str | None:
    """A picture of the run folder as a data URI; None if it is gone, or if its path leads out of the folder."""
    path = (folder / name).resolve()
    mime = MIME.get(path.suffix.lower())
    if mime is None or not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    return data_uri(path.read_bytes(), mime)


def parameter_rows(stage: Stage) -> list[Record]:
    """The rows of parameters.json and their sum."""
    columns = ("parameters", "trainable", "frozen", "normalisation_locked")
    rows = [{"module": row.get("module", ""), **{c: int(row.get(c) or 0) for c in columns}} for row in stage.parameters]
    if len(rows) > 1:
        rows.append({"module": "", **{column: sum(row[column] for row in rows) for column in columns}})
    return rows


def class_tables(stage: Stage) -> list[Record]:
    """For each task the classes by split, the most frequent first; the tail of a long list is counted, not printed."""
    classes: dict[str, dict[str, dict[str, int]]] = stage.data.get("classes") or {}
    splits = list(classes)
    tables = []
    for task in dict.fromkeys(task for split in splits for task in classes[split]):
        columns = [classes[split].get(task) or {} for split in splits]
        names = dict.fromkeys(name for column in columns for name in column)
        rows: list[Record] = [{"name": name, "counts": [column.get(name, 0) for column in columns]} for name in names]
        rows.sort(key=lambda row: -row["counts"][0])
        largest = max((row["counts"][0] for row in rows), default=0) or 1
        for row in rows:
            row["share"] = row["counts"][0] / largest
        tail = rows[MOST_CLASS_ROWS:]
        tables.append({"task": task, "splits": splits, "rows": rows[:MOST_CLASS_ROWS], "tail": tail})
    return tables


def timings(run: Run) -> list[Record]:
    """Seconds by stage and part, each also as a share of the longest stage."""
    rows: list[Record] = []
    for stage in run.stages:
        parts = {name: float(value or 0) for name, value in (stage.done.get("seconds") or {}).items()}
        if parts:
            wait = stage.done.get("data_wait")
            rows.append({"name": stage.name, "parts": parts, "total": sum(parts.values()), "data_wait": wait})
    longest = max((row["total"] for row in rows), default=0) or 1
    return [row | {"shares": {name: part / longest for name, part in row["parts"].items()}} for row in rows]


def duration(seconds: float | None) -> str:
    """Seconds as people say them."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def environment_rows(run: Run) -> list[tuple[str, str]]:
    """Where it ran, in short lines."""
    known = run.environment
    git = known.get("git") or {}
    changes = " with uncommitted changes" if git.get("dirty") else ""
    versions = ", ".join(f"{name} {version}" for name, version in (known.get("versions") or {}).items())
    rows = [
        ("created", known.get("created")),
        ("commit", f"{git['commit']}{changes}" if git.get("commit") else None),
        ("device", known.get("device")),
        ("processes", known.get("world_size")),
        ("seed", known.get("seed")),
        ("python", known.get("python")),
        ("versions", versions),
        ("run folder", run.folder.name),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _class(target: Any) -> str:
    return str(target or "").rpartition(".")[2]
