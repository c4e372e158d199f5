"""The page of a sweep: what won, sortable tables, parallel coordinates, learning curves, what failed and its log."""

import math
from pathlib import Path
from typing import Any

from engine.parallel import axis_of, parallel
from engine.plots import Curve, Picture, curves
from engine.record import Record
from engine.report import write_page
from engine.results import epoch_number
from engine.sections import picture_view
from engine.spread import Setting, side_by_side
from engine.summary import Group, Row, Summary, last_lines

MOST_CURVES = 8
MOST_SETTINGS = 40


def write_sweep_page(folder: Path, summary: Summary) -> Path:
    """Writes `sweep.html` into the sweep's folder; links to the jobs' own reports are relative, so it can be moved.

    Its tables are sorted by a click on a column's head, which the page's own few lines of script do; without it nothing
    is missing but that.
    """
    return write_page(folder / "sweep.html", "sweep.html.j2", folder=folder, **sweep_view(summary))


def sweep_view(summary: Summary) -> dict[str, Any]:
    """Everything that the page shows, as plain values."""
    best = summary.best
    return {
        "summary": summary,
        "finished": len(summary.rows) - len(summary.unfinished),
        "command": next((c for row in summary.rows if (c := row.run and row.run.environment.get("command"))), None),
        "metric": best.rows[0].metric if best else "",
        "best": best,
        "best_told": list(zip(summary.names.values(), best.settings, strict=True)) if best else [],
        "runs": [_run_view(summary, row) for row in summary.rows],
        "failed": [_failure_view(summary, row) for row in summary.unfinished],
        "settings": _settings(summary),
        "coordinates": _coordinates(summary),
        "curves": _curves(summary),
        "seconds": sum(row.seconds or 0.0 for row in summary.rows),
    }


def _run_view(summary: Summary, row: Row) -> Record:
    report = row.run is not None and (row.run.folder / "report.html").is_file()
    return {
        "job": row.job,
        "href": f"{row.job}/report.html" if report else None,
        "state": row.state,
        "settings": [row.settings.get(key, "") for key in summary.names],
        "seed": _seed(row),
        "metrics": [row.metrics.get(metric) for metrics in summary.tables for metric in metrics],
        "seconds": row.seconds,
    }


def _seed(row: Row) -> str:
    return row.settings.get("seed", "")


def _failure_view(summary: Summary, row: Row) -> Record:
    return {
        "job": row.job,
        "state": row.state,
        "reason": row.reason,
        "told": ", ".join(filter(None, [summary.told(row), _seed(row) and f"seed={_seed(row)}"])),
        "folder": str(row.run.folder) if row.run else "",
        "lines": last_lines(row.run.folder) if row.run and row.state == "failed" else [],
    }


def _settings(summary: Summary) -> Record | None:
    """A picture of the test figure, or of the judged one where there is none, if settings have several runs."""
    metrics = {group.rows[0].metric for group in summary.groups}
    if len(metrics) != 1 or not any(len(group.rows) > 1 for group in summary.groups):
        return None
    judged = metrics.pop()
    test = f"test/{judged.partition('/')[2]}"
    metric = test if test in summary.metrics else judged
    rows = [setting for group in summary.groups if (setting := _setting(group, _name(summary, group), metric))]
    if not 2 <= len(rows) <= MOST_SETTINGS:
        return None
    theirs = any(row.theirs is not None for row in rows)
    return picture_view(side_by_side(rows, metric), theirs=theirs, notes=_notes(summary))


def _setting(group: Group, name: str, metric: str) -> Setting | None:
    """A row of the picture; none where a run of the group has no finite figure."""
    values, mean = group.values(metric), group.mean(metric)
    if mean is None or not all(map(_finite, values)):
        return None
    return Setting(name, values, mean, group.spread(metric), group.claims.get(metric))


def _notes(summary: Summary) -> list[str]:
    """What the source says in words, with the settings that it says it of, unless these are all."""
    said: dict[str, list[str]] = {}
    for group in summary.groups:
        if note := group.rows[0].source.get("note"):
            said.setdefault(str(note), []).append(_name(summary, group))
    everywhere = len(summary.groups)
    return [note if len(names) == everywhere else f"{'; '.join(names)}: {note}" for note, names in said.items()]


def _coordinates(summary: Summary) -> Record | None:
    """A picture where finished runs differ in a setting, judged by the same metric."""
    rows = [row for row in summary.rows if row.state == "finished" and _finite(row.value)]
    metrics = {row.metric for row in rows}
    if len(summary.groups) < 2 or len(metrics) > 1:
        return None
    columns = [axis_of(name, [row.settings.get(key) for row in rows]) for key, name in summary.names.items()]
    picture = parallel(columns, rows[0].metric, [float(row.value or 0.0) for row in rows], rows[0].mode == "min")
    return picture_view(picture)


def _curves(summary: Summary) -> Record | None:
    """The judged metric by epoch, the mean of each setting's runs; the best settings where there are too many."""
    groups = (summary.ranked or summary.groups)[:MOST_CURVES]
    lines = [line for group in groups if (line := _mean_curve(group, _name(summary, group)))]
    if not lines:
        return None
    metric = groups[0].rows[0].metric
    picture: Picture = curves(lines, "epoch", metric)
    return picture_view(picture, metric=metric, shown=len(lines), groups=len(summary.groups))


def _mean_curve(group: Group, name: str) -> Curve | None:
    """The mean over the runs at each epoch that all of them reached."""
    metric = group.rows[0].metric
    histories = [_history(row, metric) for row in group.rows]
    epochs = sorted(set.intersection(*(set(history) for history in histories)))
    if len(epochs) < 2:
        return None
    means = [sum(history[epoch] for history in histories) / len(histories) for epoch in epochs]
    return Curve(name, [float(epoch) for epoch in epochs], means)


def _history(row: Row, metric: str) -> dict[int, float]:
    if row.run is None or not row.run.asked:
        return {}
    rows = row.run.asked[-1].validation()
    return {epoch_number(found): float(found[metric]) for found in rows if _finite(found.get(metric))}


def _name(summary: Summary, group: Group) -> str:
    return ", ".join(group.settings) or str(group.rows[0].settings.get("experiment", "all"))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
