"""Many runs put in order: what differs between them, and each setting's mean and spread over seeds."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.record import Record, Run, Stage, read_run
from engine.results import judged, split_key
from engine.variation import ABSENT, differing, goes_with_seed, is_seed, settings_of, short_names

MOST_METRICS = 8


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
    run: Run | None = None  # None: a number of the sweep that left no folder

    @property
    def value(self) -> float | None:
        """The figure that the run is judged by."""
        return self.metrics.get(self.metric)

    @cached_property
    def seconds(self) -> float | None:
        """The time that its finished stages took: building, training and testing; None before one has finished."""
        stages = self.run.asked if self.run else []
        parts = [float(part or 0) for stage in stages for part in (stage.done.get("seconds") or {}).values()]
        return sum(parts) if parts else None


@dataclass
class Group:
    """The finished runs of one setting, which differ in nothing but their seed."""

    settings: tuple[str, ...]
    rows: list[Row]

    def mean(self, metric: str) -> float | None:
        """Mean over the runs; None where one of them lacks the metric."""
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def spread(self, metric: str) -> float | None:
        """Sample standard deviation (n - 1) over the runs; None of one, nan where one of them is not finite."""
        values = self.values(metric)
        if not all(map(math.isfinite, values)):
            return math.nan
        return statistics.stdev(values) if len(values) > 1 else None

    def values(self, metric: str) -> list[float]:
        """Each run's figure, in the order of the runs; none where one of them lacks it."""
        values = [row.metrics[metric] for row in self.rows if metric in row.metrics]
        return values if len(values) == len(self.rows) else []

    @property
    def seconds(self) -> float | None:
        """The mean time of a run."""
        known = [row.seconds for row in self.rows if row.seconds is not None]
        return statistics.fmean(known) if known else None

    @property
    def claims(self) -> dict[str, float]:
        """The source's figures for this setting; none where its runs do not agree on them."""
        figures: list[dict[str, float]] = [row.source.get("figures") or {} for row in self.rows]
        return figures[0] if all(claim == figures[0] for claim in figures) else {}


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
    def sample(self) -> bool:
        """True where one of the runs saw drawn pictures."""
        return any(row.sample for row in self.rows)

    @property
    def best(self) -> Group | None:
        """The group with the best mean of the metric that the runs are judged by."""
        ranked = self.ranked
        return ranked[0] if len(ranked) > 1 else None

    @property
    def ranked(self) -> list[Group]:
        """The groups with a finite mean of the metric that the runs are judged by, the best first."""
        means = [(group.mean(group.rows[0].metric), group) for group in self.groups]
        finite = [(mean, group) for mean, group in means if mean is not None and math.isfinite(mean)]
        smaller = bool(finite) and self.groups[0].rows[0].mode == "min"
        return [group for _, group in sorted(finite, key=lambda pair: pair[0] if smaller else -pair[0])]

    @property
    def tables(self) -> list[list[str]]:
        """The metrics of each table: the last stage's first, then those of each earlier stage that was tested."""
        earlier = [found[:MOST_METRICS] for stage, found in self._earlier().items() if "/" not in stage]
        return [self._main_metrics(), *earlier]

    @property
    def made(self) -> dict[str, dict[str, str]]:
        """Of earlier stages that the data made {kind: {item: its first test metric}}: all of a kind in one table."""
        kinds: dict[str, dict[str, str]] = {}
        for stage, found in self._earlier().items():
            kind, slash, item = stage.partition("/")
            if slash:
                kinds.setdefault(kind, {})[item] = found[0]
        return kinds

    def _earlier(self) -> dict[str, list[str]]:
        """The test metrics of each earlier stage that are means over the tasks, but for the loss."""
        earlier: dict[str, list[str]] = {}
        for metric in self.metrics:
            stage, colon, key = metric.rpartition(": ")
            if colon and key.startswith("test/") and not split_key(key)[1] and split_key(key)[2] != "loss":
                earlier.setdefault(stage, []).append(metric)
        return earlier

    def _main_metrics(self) -> list[str]:
        """The judged metric, its test figure, and the other test figures that are means over the tasks."""
        first = list(dict.fromkeys(group.rows[0].metric for group in self.groups))
        first += [f"test/{metric.partition('/')[2]}" for metric in first]
        rest = [m for m in self.metrics if m.startswith("test/") and not split_key(m)[1] and split_key(m)[2] != "loss"]
        return [metric for metric in dict.fromkeys(first + rest) if metric in self.metrics][:MOST_METRICS]

    def remarks(self) -> list[str]:
        """What the tables' signs mean, and what they hide, in sentences."""
        lines = []
        if any(len(group.rows) > 1 for group in self.groups):
            lines.append("±: sample standard deviation (n − 1) over the n seeds of a row.")
        if self.best:
            lines.append(f"bold: best mean {self.best.rows[0].metric}.")
        claiming = [row for group in self.groups if group.claims for row in group.rows]
        cited = dict.fromkeys(str(row.source.get("cite")) for row in claiming)
        lines += [f"source: claimed by {cite} for its own data, not measured here." for cite in cited]
        for group in self.groups:
            seeds = [tuple(v for k, v in row.settings.items() if is_seed(k)) for row in group.rows]
            if len(set(seeds)) < len(seeds):
                lines.append(f"jobs {', '.join(row.job for row in group.rows)}: a seed occurs twice among them.")
        return lines

    def told(self, row: Row) -> str:
        """The settings of a run as `name=value`s."""
        return ", ".join(f"{name}={row.settings[key]}" for key, name in self.names.items() if key in row.settings)


def jobs_of(folder: Path) -> list[Path]:
    """The folders of a sweep's jobs, in the order of their numbers.

    Raises:
        FileNotFoundError: where there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; the folder of a multirun is looked for.")
    return sorted((path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."), key=_in_order)


def collect(folders: Iterable[Path]) -> list[Row]:
    """Reads run folders from their config, done-files and failures; one that holds nothing is a row as well."""
    return [_row(read_run(folder)) for folder in folders]


def collect_sweep(folder: Path) -> list[Row]:
    """The runs of a sweep; a number without a folder, of a job that left nothing, is a row as well."""
    jobs = jobs_of(folder)
    there = {int(job.name) for job in jobs if job.name.isdecimal()}
    absent = sorted(set(range(max(there, default=-1))) - there)
    gaps = [Row(str(number), "missing", "left no folder", {}, {}, "", "max", {}, False) for number in absent]
    return collect(jobs) + gaps


def summarise(rows: Sequence[Row]) -> Summary:
    """Finds the keys that differ and groups the finished runs by all of them but the seed."""
    rows = list(rows)
    told = [row.settings for row in rows if row.settings]
    keys = differing(told)
    setting = [key for key in keys if not is_seed(key) and not goes_with_seed(key, told)]
    groups: dict[tuple[str, ...], Group] = {}
    for row in rows:
        if row.state == "finished":
            place = tuple(row.settings.get(key, ABSENT) for key in setting)
            groups.setdefault(place, Group(place, [])).rows.append(row)
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.metrics))
    return Summary(short_names(setting), list(groups.values()), metrics, rows)


def last_lines(folder: Path, most: int = 12) -> list[str]:
    """The end of a run's log, where a failure left its traceback; empty where there is no log."""
    path = folder / "run.log"
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-most:]


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
        run=run,
    )


def _reason(run: Run) -> str:
    if run.failure:
        return str(run.failure.get("error") or "failed without a word")
    waiting: list[Stage] = [stage for stage in run.asked if not stage.done]
    if waiting:
        return f"no result of {waiting[0].name}: still running, or stopped"
    return "" if run.asked else "nothing was written"


def _in_order(path: Path) -> tuple[int, str]:
    return (int(path.name) if path.name.isdecimal() else 1 << 62, path.name)


def blank(value: Any) -> Any:
    """A missing value as an empty cell of a CSV."""
    return "" if value is None else value
