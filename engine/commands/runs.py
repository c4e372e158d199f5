"""List the runs below a folder: state, judged figure, test figure, time; filtered and sorted.

--where keeps the runs whose setting has that value: KEY=VALUE, KEY a dotted key of the config or its end, VALUE with *
and ? as in file names. state, experiment and run (the folder) can be asked for like a setting. --sort takes a setting
or a metric, the largest first.
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.summary import Row

Listed = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs"), metavar="FOLDER", help="(outputs)")
    parser.add_argument("--where", nargs="+", default=[], metavar="KEY=VALUE", help="keep the runs that have all these")
    parser.add_argument("--show", nargs="+", default=[], metavar="KEY", help="settings or metrics as further columns")
    parser.add_argument("--sort", metavar="KEY", help="by this setting or metric (default: by the time of the start)")
    parser.add_argument("--ascending", action="store_true", help="the smallest first")
    parser.add_argument("--last", type=int, metavar="N", help="the first N lines of the sorted list only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the list as JSON; - for the terminal")


def run(args: argparse.Namespace) -> int:
    """List; 1 when no run is left."""
    folders = list(find_runs(args.folder))
    if not folders:
        raise ValueError(
            f"{args.folder}: there is no run below it; runs lie in outputs/<experiment>/ unless out_dir= says"
        )
    rows = listed(args.folder, folders, [*args.show, *filter(None, [args.sort])], [split(pair) for pair in args.where])
    rows = in_order(rows, args.sort or "created", args.ascending)[: args.last]
    if args.json:
        text = json.dumps(rows, ensure_ascii=False, indent=1)
        print(text) if str(args.json) == "-" else args.json.write_text(text + "\n", encoding="utf-8")
    if str(args.json) != "-":
        _print(rows, dict.fromkeys([*args.show, *filter(None, [args.sort])]), len(folders))
    return int(not rows)


def find_runs(folder: Path) -> Iterator[Path]:
    """Every run folder at or below `folder`, those of sweeps included; a run's own folders are not searched.

    Raises:
        FileNotFoundError: where there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; a folder with runs is looked for, such as outputs")
    for home, below, files in os.walk(folder):
        below.sort()
        if "config.yaml" in files or "failure.json" in files:
            below.clear()
            yield Path(home)


def split(pair: str) -> tuple[str, str]:
    """`lr=0.1` as key and value.

    Raises:
        ValueError: There is no `=` in it.
    """
    key, equals, value = pair.partition("=")
    if not key or not equals:
        raise ValueError(f"--where {pair}: KEY=VALUE is wanted, such as state=failed or encoder.name=resnet18")
    return key, value


def listed(home: Path, folders: Sequence[Path], keys: Sequence[str], where: Sequence[tuple[str, str]]) -> list[Listed]:
    """What the list says of each run that has all that `where` asks for.

    Raises:
        ValueError: No run has one of the keys.
    """
    from engine.suggest import nearest
    from engine.summary import collect

    known: set[str] = set()
    kept = []
    for row in collect(folders):
        values = _values(home, row)
        known |= values.keys()
        if all(fnmatchcase(str(_look_up(values, key)), value) for key, value in where):
            common = ("run", "state", "experiment", "metric", "value", "test", "seconds", "created")
            kept.append({key: values[key] for key in common} | {key: _look_up(values, key) for key in keys})
    for key in [*keys, *(key for key, _ in where)]:
        if not any(name == key or name.endswith(f".{key}") for name in known):
            raise ValueError(f"no run has a setting or a metric {key!r}{nearest(key, known)}")
    return kept


def in_order(rows: Sequence[Listed], key: str, ascending: bool) -> list[Listed]:
    """Numbers by size, everything else as text; runs without a value last, whichever way."""

    def number(row: Listed) -> float | None:
        try:
            return float(row[key])
        except (TypeError, ValueError):
            return None

    there = [row for row in rows if row[key] not in (None, "")]
    numeric = all(number(row) is not None for row in there)
    there.sort(key=lambda row: number(row) if numeric else str(row[key]), reverse=not ascending)  # type: ignore[arg-type,return-value]
    return there + [row for row in rows if row[key] in (None, "")]


def _values(home: Path, row: "Row") -> Listed:
    """Everything by which a run can be listed: its settings, its metrics, and a few words of its own."""
    folder = row.run.folder if row.run else home
    return {
        **row.settings,
        **row.metrics,
        "run": folder.relative_to(home).as_posix(),
        "state": row.state,
        "experiment": row.run.experiment if row.run else "",
        "metric": row.metric,
        "value": row.value,
        "test": row.metrics.get(f"test/{row.metric.partition('/')[2]}"),
        "seconds": row.seconds,
        "created": row.run.environment.get("created") if row.run else None,
    }


def _look_up(values: Listed, key: str) -> Any:
    """The value under a key, or under the shortest key that ends in it."""
    found = [name for name in values if name == key or name.endswith(f".{key}")]
    return values[min(found, key=len)] if found else None


def _print(rows: Sequence[Listed], more: Sequence[str] | dict[str, None], looked_at: int) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from engine.results import figure
    from engine.sections import duration

    table = Table(caption=f"{len(rows)} of {looked_at} runs", caption_justify="left")
    for head in ("run", "state", "judged by"):
        table.add_column(head, overflow="fold")
    for head in ("value", "test", *more, "time"):
        table.add_column(escape(head), justify="right")
    colours = {"failed": "red", "unfinished": "yellow"}
    for row in rows:
        cells = [v if isinstance(v := row[key], str) else figure(v) for key in ("value", "test", *more)]
        state = f"[{colours.get(row['state'], 'green')}]{row['state']}[/]"
        table.add_row(escape(row["run"]), state, escape(row["metric"]), *map(escape, cells), duration(row["seconds"]))
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)
