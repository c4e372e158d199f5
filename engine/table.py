"""The tables of many runs: on the terminal, in `sweep.csv`, in `sweep.html`."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.results import figure
from engine.runs import write_text
from engine.sections import duration
from engine.summary import Group, Row, Summary, blank, collect_sweep, summarise
from engine.sweep_page import write_sweep_page
from engine.variation import ABSENT, differing

MOST_KEYS = 8
WIDE = 200  # columns, where there is no edge to wrap at: a file


def write_table(folder: Path, console: Console | None = None) -> str:
    """Prints the tables of all runs in a folder; writes `sweep.csv` with every figure and the page `sweep.html` there.

    Args:
        folder: The folder of a multirun; each job has a folder of its own in it.
        console: Where to print; the terminal unless told.

    Returns:
        What was printed, as plain text.

    Raises:
        FileNotFoundError: where there is no such folder.
    """
    summary = summarise(collect_sweep(folder))
    write_text(folder / "sweep.csv", as_csv(summary))
    page = write_sweep_page(folder, summary)
    tables = [as_table(summary, metrics) for metrics in summary.tables]
    parts = [_headline(summary), *tables, *_remarks(summary), f"[dim]{escape(str(page))}[/]"]
    console = console or Console()
    if not console.is_terminal:
        console.width = WIDE
    text = Console(file=io.StringIO(), width=WIDE, record=True)
    for target in (console, text):
        target.print(*parts, sep="\n")
    return text.export_text()


def as_table(summary: Summary, metrics: Sequence[str]) -> Table:
    """The groups for a terminal: settings, number of runs, mean ± spread, time, and beneath the source's figure."""
    shown = list(summary.names.items())[:MOST_KEYS]
    table = Table()
    for _, name in shown or [("", "experiment")]:
        table.add_column(escape(name), overflow="fold")
    for head in ("n", *metrics, "time"):
        table.add_column(escape(head), justify="right")
    for group in summary.groups:
        names = list(group.settings[: len(shown)]) or [group.rows[0].settings.get("experiment", ABSENT)]
        cells = [_cell(group, metric) for metric in metrics]
        time = duration(group.seconds) if group.seconds is not None else ABSENT
        style = "bold" if group is summary.best else None
        table.add_row(*map(escape, names), str(len(group.rows)), *cells, time, style=style)
    return table


def as_csv(summary: Summary) -> str:
    """Every run, then for each group its mean, its spread and the source's figures; `kind` tells which a line is."""
    keys = differing([row.settings for row in summary.rows if row.settings])
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["kind", "job", "state", "n", "seconds", *keys, *summary.metrics])
    for row in summary.rows:
        values = [row.metrics.get(metric, "") for metric in summary.metrics]
        settings = [row.settings.get(key, "") for key in keys]
        lines.writerow(["run", row.job, row.state, 1, blank(row.seconds), *settings, *values])
    for group in summary.groups:
        named = dict(zip(summary.names, group.settings, strict=True))
        start = ["", "", len(group.rows), blank(group.seconds), *(named.get(key, "") for key in keys)]
        lines.writerow(["mean", *start, *(blank(group.mean(metric)) for metric in summary.metrics)])
        lines.writerow(["sd", *start, *(blank(group.spread(metric)) for metric in summary.metrics)])
        if theirs := group.claims:
            lines.writerow(["source", *start, *(blank(theirs.get(metric)) for metric in summary.metrics)])
    return file.getvalue()


def _headline(summary: Summary) -> str:
    sample = "on DRAWN SAMPLES: " if summary.sample else ""
    finished = len(summary.rows) - len(summary.unfinished)
    return f"[bold]{sample}{finished} of {len(summary.rows)} runs finished[/]"


def _cell(group: Group, metric: str) -> str:
    mean, spread = group.mean(metric), group.spread(metric)
    text = figure(mean) + (f" ± {figure(spread)}" if spread is not None else "")
    theirs = group.claims.get(metric)
    return text if theirs is None else f"{text}\n[not bold dim italic]source {figure(theirs)}[/]"


def _remarks(summary: Summary) -> list[str]:
    """What the table's signs mean, what it leaves out, and which runs are not in it."""
    lines = [escape(remark) for remark in summary.remarks()]
    lines += [
        f"{escape(kind)}: {len(made)} stages; sweep.csv has their figures." for kind, made in summary.made.items()
    ]
    if len(summary.names) > MOST_KEYS:
        lines.append(f"{len(summary.names) - MOST_KEYS} more keys differ; sweep.csv has them.")
    return lines + [f"[red]{row.state}[/] {escape(_line(summary, row))}" for row in summary.unfinished]


def _line(summary: Summary, row: Row) -> str:
    told = summary.told(row)
    return f"{row.job}: {row.reason}" + (f" ({told})" if told else "")
