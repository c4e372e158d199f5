"""Show runs side by side: what differs in their config and their machine, and every metric.

Keys that say where a run lies or how it is logged are left out. The better of the figures that both are judged by is
marked; whether a difference means something is a matter of seeds, which one run of each cannot tell.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.summary import Row

Lines = dict[str, list[Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs, two or more")
    parser.add_argument("--all", action="store_true", help="also the metrics of single tasks, and all keys that differ")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it as JSON; - for the terminal")


def run(args: argparse.Namespace) -> int:
    """Compare, print."""
    from engine.summary import collect

    if len(args.runs) < 2:
        raise ValueError("one run alone has nothing to be compared with: name two or more")
    for folder in args.runs:
        if not folder.is_dir() or not ((folder / "config.yaml").is_file() or (folder / "failure.json").is_file()):
            raise ValueError(f"{folder} is not a run's folder (there is no config.yaml in it)")
    rows = collect(args.runs)
    tables = {"settings": settings(rows, args.all), "made with": machines(rows), "metrics": metrics(rows, args.all)}
    if args.json:
        text = json.dumps({"runs": list(map(str, args.runs))} | tables, ensure_ascii=False, indent=1)
        print(text) if str(args.json) == "-" else args.json.write_text(text + "\n", encoding="utf-8")
    if str(args.json) != "-":
        _print(args.runs, rows, tables)
    return 0


def settings(rows: Sequence["Row"], every: bool) -> Lines:
    """The config's keys that differ; of those that follow another one only that one, unless `every` is asked for."""
    from engine.variation import ABSENT, differing

    told = [row.settings for row in rows]
    keys = differing(told) if not every else list(dict.fromkeys(key for row in told for key in row))
    lines = {key: [row.get(key, ABSENT) for row in told] for key in keys}
    return {key: values for key, values in lines.items() if len(set(values)) > 1}


def machines(rows: Sequence["Row"]) -> Lines:
    """What differs in code, versions and devices, so that nobody takes a change of these for one of the settings."""
    from engine.suggest import flatten

    told = [flatten(row.run.environment) if row.run else {} for row in rows]
    versions = [key for key in told[0] if key.startswith("versions.")]
    keys = ("git.commit", "git.dirty", "device", "world_size", "python", *versions)
    lines = {key: [str(row.get(key)) for row in told] for key in keys}
    return {key: values for key, values in lines.items() if len(set(values)) > 1}


def metrics(rows: Sequence["Row"], every: bool) -> Lines:
    """Each metric of each run; without `every` only those over all tasks of the last stage. The seconds stand last."""
    from engine.results import split_key

    keys = dict.fromkeys(key for row in rows for key in row.metrics)
    shown = [key for key in keys if every or (":" not in key and not split_key(key)[1])]
    first = dict.fromkeys([row.metric for row in rows if row.metric in keys] + shown)
    return {key: [row.metrics.get(key) for row in rows] for key in first} | {"seconds": [row.seconds for row in rows]}


def _print(runs: Sequence[Path], rows: Sequence["Row"], tables: dict[str, Lines]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 200
    heads = [escape(f"{run.parent.name}/{run.name}" if run.parent.name else run.name) for run in runs]
    for title, lines in tables.items():
        table = Table(title, *heads)
        for key, values in lines.items():
            best = _best(rows, key, values)
            cells = [escape(_written(key, value)) for value in values]
            table.add_row(escape(key), *(f"[bold]{cell} *[/]" if i in best else cell for i, cell in enumerate(cells)))
        console.print(table if lines else f"{title}: no difference")
    for row, run in zip(rows, runs, strict=True):
        if row.state != "finished":
            console.print(f"[red]{row.state}[/] {escape(str(run))}: {escape(row.reason)}")
    if any(row.sample for row in rows):
        drawn = [escape(run.name) for run, row in zip(runs, rows, strict=True) if row.sample]
        console.print(f"on DRAWN SAMPLES: {', '.join(drawn)}")


def _written(key: str, value: Any) -> str:
    from engine.results import figure
    from engine.sections import duration

    if isinstance(value, str):
        return value
    return duration(value) if key == "seconds" else figure(value)


def _best(rows: Sequence["Row"], key: str, values: Sequence[Any]) -> set[int]:
    """The places of the best value of the metric that all runs are judged by; none of any other."""
    present = [value for value in values if isinstance(value, float) and value == value]
    if {row.metric for row in rows} != {key} or len(set(present)) < 2:
        return set()
    choose: Callable[[list[float]], float] = min if rows[0].mode == "min" else max
    return {i for i, value in enumerate(values) if value == choose(present)}
