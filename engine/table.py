"""The table of many runs: what differs between them, and each setting's mean and spread over seeds."""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.record import Record, Run, Stage, read_run
from engine.results import figure, judged, split_key
from engine.runs import write_text
from engine.variation import ABSENT, differing, is_seed, settings_of, short_names

MOST_KEYS = 8
MOST_METRICS = 8
WIDE = 200  # columns, where there is no edge to wrap at: a file


@dataclass
class Row:
    """One run: its settings, its figures, and why it has none."""

    job: str
    state: str
    reason: str
    settings: dict[str, str]
    metrics: dict[str, float]
    metric: str
    mode: str
    source: Record
    sample: bool


@dataclass
class Group:
    """The finished runs of one setting, which differ in nothing but their seed."""

    settings: tuple[str, ...]
    rows: list[Row]

    def mean(self, metric: str) -> float | None:
        """Mean over the runs; None where one of them lacks the metric."""
        values = self._values(metric)
        return statistics.fmean(values) if values else None

    def spread(self, metric: str) -> float | None:
        """Sample standard deviation (n - 1) over the runs; None of one, nan where one of them is not finite."""
        values = self._values(metric)
        if not all(map(math.isfinite, values)):
            return math.nan
        return statistics.stdev(values) if len(values) > 1 else None

    def _values(self, metric: str) -> list[float]:
        values = [row.metrics[metric] for row in self.rows if metric in row.metrics]
        return values if len(values) == len(self.rows) else []


@dataclass
class Summary:
    """Many runs put in order: settings that differ (full key to short name), groups, metrics, and what is not there."""

    names: dict[str, str]
    groups: list[Group]
    metrics: list[str]
    rows: list[Row]

    @property
    def unfinished(self) -> list[Row]:
        """The runs without a result."""
        return [row for row in self.rows if row.state != "finished"]

    @property
    def best(self) -> Group | None:
        """The group with the best mean of the metric that the runs are judged by."""
        means = [(group.mean(group.rows[0].metric), group) for group in self.groups]
        ranked = [(mean, group) for mean, group in means if mean is not None and math.isfinite(mean)]
        if len(ranked) < 2:
            return None
        choose = min if self.groups[0].rows[0].mode == "min" else max
        return choose(ranked, key=lambda pair: pair[0])[1]


def write_table(folder: Path, console: Console | None = None) -> str:
    """Prints the tables of all runs in a folder; writes them to `sweep.html` there, and every figure to `sweep.csv`.

    Args:
        folder: The folder of a multirun; each job has a folder of its own in it.
        console: Where to print; the terminal unless told.

    Returns:
        What was printed, as plain text.

    Raises:
        FileNotFoundError: where there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; the folder of a multirun is looked for.")
    jobs = sorted((path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."), key=_in_order)
    summary = summarise(collect(jobs) + _gaps(jobs))
    write_text(folder / "sweep.csv", as_csv(summary))
    console = console or Console()
    tables = [as_table(summary, metrics) for metrics in _metrics_by_stage(summary)]
    parts = [_headline(summary), *tables, *_remarks(summary), f"[dim]{escape(str(folder / 'sweep.html'))}[/]"]
    if not console.is_terminal:
        console.width = WIDE
    page = Console(file=io.StringIO(), width=WIDE, record=True)
    for target in (console, page):
        target.print(*parts, sep="\n")
    write_text(folder / "sweep.html", page.export_html(clear=False))
    return page.export_text()


def collect(folders: Iterable[Path]) -> list[Row]:
    """Reads run folders from their config, done-files and failures; one that holds nothing is a row as well."""
    return [_row(read_run(folder)) for folder in folders]


def summarise(rows: Sequence[Row]) -> Summary:
    """Finds the keys that differ and groups the finished runs by all of them but the seed."""
    rows = list(rows)
    keys = differing([row.settings for row in rows if row.settings])
    setting = [key for key in keys if not is_seed(key)]
    groups: dict[tuple[str, ...], Group] = {}
    for row in rows:
        if row.state == "finished":
            place = tuple(row.settings.get(key, ABSENT) for key in setting)
            groups.setdefault(place, Group(place, [])).rows.append(row)
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.metrics))
    return Summary(short_names(setting), list(groups.values()), metrics, rows)


def as_table(summary: Summary, metrics: Sequence[str]) -> Table:
    """The groups for a terminal: settings, number of runs, mean ± spread, and beneath the source's figure."""
    shown = list(summary.names.items())[:MOST_KEYS]
    table = Table()
    for _, name in shown or [("", "experiment")]:
        table.add_column(escape(name), overflow="fold")
    table.add_column("n", justify="right")
    for metric in metrics:
        table.add_column(escape(metric), justify="right")
    for group in summary.groups:
        names = list(group.settings[: len(shown)]) or [group.rows[0].settings.get("experiment", ABSENT)]
        cells = [_cell(group, metric) for metric in metrics]
        style = "bold" if group is summary.best else None
        table.add_row(*map(escape, names), str(len(group.rows)), *cells, style=style)
    return table


def as_csv(summary: Summary) -> str:
    """Every run, then for each group its mean, its spread and the source's figures; `kind` tells which a line is."""
    keys = differing([row.settings for row in summary.rows if row.settings])
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["kind", "job", "state", "n", *keys, *summary.metrics])
    for row in summary.rows:
        values = [row.metrics.get(metric, "") for metric in summary.metrics]
        lines.writerow(["run", row.job, row.state, 1, *(row.settings.get(key, "") for key in keys), *values])
    for group in summary.groups:
        settings = dict(zip(summary.names, group.settings, strict=True))
        start = ["", "", len(group.rows), *(settings.get(key, "") for key in keys)]
        lines.writerow(["mean", *start, *(_blank(group.mean(metric)) for metric in summary.metrics)])
        lines.writerow(["sd", *start, *(_blank(group.spread(metric)) for metric in summary.metrics)])
        if theirs := _claims(group):
            lines.writerow(["source", *start, *(_blank(theirs.get(metric)) for metric in summary.metrics)])
    return file.getvalue()


def _row(run: Run) -> Row:
    stage = run.asked[-1] if run.asked else None
    metrics: dict[str, float] = {}
    for earlier in run.asked[:-1]:
        metrics |= {f"{earlier.name}: {key}": value for key, value in earlier.metrics.items()}
    return Row(
        job=run.folder.name,
        state=run.state,
        reason=_reason(run),
        settings=settings_of(run),
        metrics=(stage.metrics if stage else {}) | metrics,
        metric=judged(run, stage) if stage else "",
        mode=str((stage and stage.config.get("mode")) or run.config.get("mode") or "max"),
        source=run.config.get("theirs") or {},
        sample=run.sample,
    )


def _reason(run: Run) -> str:
    if run.failure:
        return str(run.failure.get("error") or "failed without a word")
    waiting: list[Stage] = [stage for stage in run.asked if not stage.done]
    if waiting:
        return f"no result of {waiting[0].name}: still running, or stopped"
    return "" if run.asked else "nothing was written"


def _gaps(jobs: Sequence[Path]) -> list[Row]:
    """Jobs are numbered from 0: a number without a folder is a job that left nothing."""
    there = {int(job.name) for job in jobs if job.name.isdecimal()}
    absent = sorted(set(range(max(there, default=-1))) - there)
    return [Row(str(n), "missing", "left no folder", {}, {}, "", "max", {}, False) for n in absent]


def _in_order(path: Path) -> tuple[int, str]:
    return (int(path.name) if path.name.isdecimal() else 1 << 62, path.name)


def _main_metrics(summary: Summary) -> list[str]:
    """The judged metric, its test figure, and the other test figures that are means over the tasks."""
    first = list(dict.fromkeys(group.rows[0].metric for group in summary.groups))
    first += [f"test/{metric.partition('/')[2]}" for metric in first]
    rest = [m for m in summary.metrics if m.startswith("test/") and not split_key(m)[1] and split_key(m)[2] != "loss"]
    return [metric for metric in dict.fromkeys(first + rest) if metric in summary.metrics][:MOST_METRICS]


def _metrics_by_stage(summary: Summary) -> list[list[str]]:
    """The columns of each table: one for each earlier stage that was tested, then the last stage's."""
    earlier: dict[str, list[str]] = {}
    for metric in summary.metrics:
        stage, colon, key = metric.rpartition(": ")
        if colon and key.startswith("test/") and not split_key(key)[1] and split_key(key)[2] != "loss":
            earlier.setdefault(stage, []).append(metric)
    return [*(metrics[:MOST_METRICS] for metrics in earlier.values()), _main_metrics(summary)]


def _headline(summary: Summary) -> str:
    sample = "on DRAWN SAMPLES: " if any(row.sample for row in summary.rows) else ""
    finished = len(summary.rows) - len(summary.unfinished)
    return f"[bold]{sample}{finished} of {len(summary.rows)} runs finished[/]"


def _cell(group: Group, metric: str) -> str:
    mean, spread = group.mean(metric), group.spread(metric)
    text = figure(mean) + (f" ± {figure(spread)}" if spread is not None else "")
    theirs = _claims(group).get(metric)
    return text if theirs is None else f"{text}\n[not bold dim italic]source {figure(theirs)}[/]"


def _claims(group: Group) -> dict[str, float]:
    """The source's figures for a group; none where its runs do not agree on them."""
    figures: list[dict[str, float]] = [row.source.get("figures") or {} for row in group.rows]
    return figures[0] if all(claim == figures[0] for claim in figures) else {}


def _blank(value: Any) -> Any:
    return "" if value is None else value


def _remarks(summary: Summary) -> list[str]:
    """What the table's signs mean, what it leaves out, and which runs are not in it."""
    lines = []
    if any(len(group.rows) > 1 for group in summary.groups):
        lines.append("±: sample standard deviation (n − 1) over the n seeds of a row.")
    if summary.best:
        lines.append(f"bold: best mean {escape(summary.best.rows[0].metric)}.")
    claiming = [row for group in summary.groups if _claims(group) for row in group.rows]
    cited = dict.fromkeys(str(row.source.get("cite")) for row in claiming)
    lines += [f"source: claimed by {escape(cite)} for its own data, not measured here." for cite in cited]
    if len(summary.names) > MOST_KEYS:
        lines.append(f"{len(summary.names) - MOST_KEYS} more keys differ; sweep.csv has them.")
    for group in summary.groups:
        seeds = [tuple(v for k, v in row.settings.items() if is_seed(k)) for row in group.rows]
        if len(set(seeds)) < len(seeds):
            lines.append(f"jobs {', '.join(escape(row.job) for row in group.rows)}: a seed occurs twice among them.")
    for row in summary.unfinished:
        lines.append(f"[red]{row.state}[/] {escape(row.job)}: {escape(row.reason)}{_told(summary, row)}")
    return lines


def _told(summary: Summary, row: Row) -> str:
    told = [f"{name}={row.settings[key]}" for key, name in summary.names.items() if key in row.settings]
    return escape(f" ({', '.join(told)})") if told else ""
