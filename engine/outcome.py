"""What a finished run prints: the figures of each stage, those of many stages of one kind in one table."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Result = dict[str, Any]  # a stage's done-file


def print_stage(name: str, result: Result, theirs: Mapping[str, float]) -> None:
    """A stage's metrics, validation beside test; those of its parts (`Daily/top1`) as a table of their own.

    Args:
        name: Of the stage.
        result: Its done-file.
        theirs: The source's figures for it, by `test/<metric>`.
    """
    keys = list(dict.fromkeys(key.partition("/")[2] for key in result["metrics"]))
    plain = [key for key in keys if "/" not in key or f"test/{key}" in theirs]
    table = Table(
        "metric", "validation", "test", *(["the source's, on its data"] if theirs else []), title=escape(name)
    )
    for key in plain:
        shown = [_figure(result["metrics"].get(f"{split}/{key}")) for split in ("val", "test")]
        table.add_row(key, *shown, *([_figure(theirs.get(f"test/{key}"))] if theirs else []))
    Console().print(table)
    parts = [key for key in keys if key not in plain]
    if parts:
        _print_parts(name, result["metrics"], parts)


def _print_parts(name: str, metrics: Mapping[str, float], keys: list[str]) -> None:
    split = "test" if any(f"test/{key}" in metrics for key in keys) else "val"
    columns = list(dict.fromkeys(key.rpartition("/")[2] for key in keys))
    table = Table("", *columns, title=f"{escape(name)}, {'validation' if split == 'val' else split}")
    for part in dict.fromkeys(key.rpartition("/")[0] for key in keys):
        table.add_row(escape(part), *(_figure(metrics.get(f"{split}/{part}/{column}")) for column in columns))
    Console().print(table)


def print_items(results: Mapping[str, Result]) -> None:
    """Stages that the data made of one: a row each, with what they are judged by."""
    judged = next(iter(results.values()))["judged_by"].partition("/")[2]
    names = [name.partition("/") for name in results]
    table = Table(names[0][0], f"validation {judged}", f"test {judged}", "epochs", "seconds")
    for (_, _, item), result in zip(names, results.values(), strict=True):
        figures = [_figure(result["metrics"].get(f"{split}/{judged}")) for split in ("val", "test")]
        table.add_row(escape(item), *figures, str(result["epochs"]), f"{sum(result['seconds'].values()):.0f}")
    Console().print(table)


def _figure(value: float | None) -> str:
    return f"{value:.4f}" if value is not None else ""
