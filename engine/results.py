"""What a run scored, arranged for reading: metric keys taken apart, baselines and the source's figures beside them."""

import math
from dataclasses import dataclass, field
from typing import Any

from engine.record import Record, Run, Stage

ORDER = ("top1", "top5", "accuracy", "precision", "recall", "f1")
NAMES = {"top1": "top-1", "top5": "top-5", "f1": "F1"}
# The metrics to which answering the commonest class is a fair opponent.
AGAINST_MAJORITY = ("top1", "accuracy")


@dataclass
class Verdict:
    """The figure that the run is judged by, and the sentences that put it in place."""

    metric: str
    value: float | None
    remarks: list[str]


@dataclass
class Line:
    """One row of a result table; `mean` marks the mean over the tasks above it."""

    name: str
    cells: list[float | None]
    mean: bool = False


@dataclass
class Scores:
    """A result table: the kinds of its columns (`ours`, `majority`, `theirs`), their heads, and groups of rows."""

    title: str
    heads: list[tuple[str, str]]
    groups: list[tuple[str, list[Line]]] = field(default_factory=list)


def figure(value: Any) -> str:
    """A number as the report prints it: shares with four decimals, counts with separators, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"


def metric_name(metric: str) -> str:
    """`f1` as people write it."""
    return NAMES.get(metric, metric)


def split_key(key: str) -> tuple[str, str, str]:
    """`test/Daily/top1` as split, task and metric; the task is empty for a mean over tasks or a single-label set."""
    split, _, rest = key.partition("/")
    task, _, metric = rest.rpartition("/")
    return split, task, metric


def majority(stage: Stage, split: str) -> dict[str, float]:
    """For each task the share of its commonest true class, that is the accuracy of always answering it."""
    shares = {}
    for task, table in (stage.confusion.get(split) or {}).items():
        truths = [sum(row) for row in table.get("matrix") or []]
        if sum(truths):
            shares[task] = max(truths) / sum(truths)
    return shares


def constant_answer(stage: Stage, split: str) -> float | None:
    """The mean over the tasks of what the commonest class gets; None where a task's confusion matrix is missing."""
    shares = majority(stage, split)
    tasks = {task for s, task, _ in map(split_key, stage.metrics) if s == split and task}
    return sum(shares.values()) / len(shares) if shares and tasks <= shares.keys() else None


def judged(run: Run, stage: Stage) -> str:
    """The key of the metric by which the stage is judged."""
    return str(stage.config.get("metric") or run.config.get("metric") or "")


def scores_of(stage: Stage) -> tuple[dict[str, float], str]:
    """The stage's figures; before it is finished those of its last validation, with a remark that says so."""
    if stage.done or not stage.validation():
        return stage.metrics, ""
    last = stage.validation()[-1]
    so_far = {key: value for key, value in last.items() if key.startswith("val/")}
    return so_far, f"so far: last validation, in epoch {epoch_number(last)}"


def epoch_number(row: Record) -> int:
    """Epochs are counted from 0 in the files and from 1 for people."""
    return int(row.get("epoch") or 0) + 1


def rule_of(stage: Stage) -> str:
    """The decoding rule whose figures a stage's are, where it measures several; empty where its parts are tasks."""
    return str((stage.config.get("module") or {}).get("decoding") or "")


def result_tables(run: Run, stage: Stage) -> list[Scores]:
    """The stage's results: metric by split and, for several tasks, task by metric; none where there is nothing yet."""
    scores, _ = scores_of(stage)
    if not scores:
        return []
    theirs = _theirs(run) if stage is judged_stage(run) else {}
    tables = [_summary(stage, scores, theirs)]
    if any(task for _, task, _ in map(split_key, scores)):
        tables.append(_by_task(stage, scores, theirs))
    return tables


def judged_stage(run: Run) -> Stage | None:
    """The last stage that has figures: the one whose result is the run's."""
    return next((stage for stage in reversed(run.stages) if scores_of(stage)[0]), None)


def verdict(run: Run) -> Verdict:
    """The run's judged metric with its value, the test figure, and what a constant answer would have got."""
    stage = judged_stage(run)
    metric = judged(run, stage or run.stages[-1]) if run.stages else ""
    if stage is None:
        return Verdict(
            metric, None, ["No validation has been reached yet." if run.state == "unfinished" else "No result."]
        )
    value, when = _best(run, stage, metric)
    remarks = [when] if when else []
    test = "test/" + metric.partition("/")[2]
    if test in stage.metrics:
        base = constant_answer(stage, "test") if metric.rpartition("/")[2] in AGAINST_MAJORITY else None
        beside = f", where always answering the commonest class gets {figure(base)}" if base is not None else ""
        remarks.append(f"On the test split, used once: {figure(stage.metrics[test])}{beside}.")
    return Verdict(metric, value, remarks)


def _best(run: Run, stage: Stage, metric: str) -> tuple[float | None, str]:
    best, where = stage.done.get("best") or {}, f" in stage {stage.name}" if len(run.stages) > 1 else ""
    if best.get("metric") == metric and best.get("value") is not None:
        return best["value"], f"Chosen after epoch {epoch_number(best)} of {stage.done.get('epochs', '?')}{where}."
    if metric in stage.metrics:
        return stage.metrics[metric], f"After the last epoch{where}."
    rows = [row for row in stage.validation() if isinstance(row.get(metric), int | float)]
    if not rows:
        return None, ""
    choose = min if (stage.config.get("mode") or run.config.get("mode")) == "min" else max
    row = choose(rows, key=lambda row: row[metric])
    return row[metric], f"The best so far, after epoch {epoch_number(row)}{where}; not finished."


def _theirs(run: Run) -> dict[str, float]:
    return (run.config.get("theirs") or {}).get("figures") or {}


def _metrics(keys: list[str]) -> list[str]:
    """The metrics among some keys in reading order: the known ones, the others as they come, the loss last."""
    present = dict.fromkeys(metric for _, _, metric in map(split_key, keys))
    known = [metric for metric in ORDER if metric in present]
    return known + [m for m in present if m not in ORDER and m != "loss"] + (["loss"] if "loss" in present else [])


def _summary(stage: Stage, scores: dict[str, float], theirs: dict[str, float]) -> Scores:
    """Metric by split, with the majority's share of the test split and the source's figure in columns of their own."""
    keys = [key for key in [*scores, *theirs] if not split_key(key)[1]]
    splits = [split for split in ("test", "val") if any(key.startswith(f"{split}/") for key in scores)]
    base = constant_answer(stage, splits[0]) if splits else None
    several = any(task for _, task, _ in map(split_key, scores))
    heads = [(split, "ours") for split in splits]
    heads += [("commonest class", "majority")] * (base is not None) + [("the source", "theirs")] * bool(theirs)
    rule = rule_of(stage) if several else ""
    lines = []
    for metric in _metrics(keys):
        cells = [scores.get(f"{split}/{metric}") for split in splits]
        cells += [base if metric in AGAINST_MAJORITY else None] * (base is not None)
        cells += [theirs.get(f"test/{metric}", theirs.get(f"val/{metric}"))] * bool(theirs)
        lines.append(Line("loss of all" if several and not rule and metric == "loss" else metric_name(metric), cells))
    title = f"By the rule that answers, {rule}" if rule else "Mean over the tasks" if several else ""
    return Scores(title, heads, [("", lines)])


def _by_task(stage: Stage, scores: dict[str, float], theirs: dict[str, float]) -> Scores:
    """Task by metric, a group of rows for each split; baselines and source's figures follow their metric."""
    metrics, rule = _metrics([key for key in scores if split_key(key)[1]]), rule_of(stage)
    claimed = {split_key(key)[2] for key in theirs if split_key(key)[1]}
    columns = [
        (metric, kind)
        for metric in metrics
        for kind in ("ours", "majority", "theirs")
        if kind == "ours"
        or (kind == "majority" and metric in AGAINST_MAJORITY and stage.confusion and not rule)
        or (kind == "theirs" and metric in claimed)
    ]
    special = {"majority": "commonest class", "theirs": "the source"}
    heads: list[tuple[str, str]] = [(special.get(kind, metric_name(metric)), kind) for metric, kind in columns]
    table = Scores("By each rule" if rule else "By task", heads)
    for split in ("test", "val"):
        tasks = dict.fromkeys(task for s, task, _ in map(split_key, scores) if s == split and task)
        values = {"ours": scores, "majority": _spread(stage, split), "theirs": theirs}
        lines = [Line(t, [values[kind].get(f"{split}/{t}/{m}") for m, kind in columns]) for t in tasks]
        if lines:
            # The loss over all tasks is their weighted sum, so it has no place in a row of means.
            mean = [values[kind].get(f"{split}/{m}") if m != "loss" else None for m, kind in columns]
            table.groups.append((split, lines if rule else [*lines, Line("mean", mean, mean=True)]))
    return table


def _spread(stage: Stage, split: str) -> dict[str, float]:
    """The majority shares under the metric keys they stand beside."""
    shares, mean = majority(stage, split), constant_answer(stage, split)
    spread = {f"{split}/{task}/{metric}": share for task, share in shares.items() for metric in AGAINST_MAJORITY}
    return spread | ({f"{split}/{metric}": mean for metric in AGAINST_MAJORITY} if mean is not None else {})
