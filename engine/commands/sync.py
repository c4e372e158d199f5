"""Send offline W&B runs: everything below a folder that was not sent yet, in the order in which it was made.

A run that was resumed, or that has several stages, lies in several segments with one id; W&B joins them if it gets them
together and in order, which is what this does. Without a key it shows what it would send.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NAME = re.compile(r"offline-run-(\d{8}_\d{6})-(\w+)")


@dataclass(frozen=True, order=True)
class Segment:
    """One stretch of a run, written without a network."""

    started: str
    run_id: str
    folder: Path
    sent: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="runs, or folders with runs (outputs)")
    parser.add_argument("--again", action="store_true", help="also what was sent before")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be sent")
    parser.add_argument("--project", help="instead of the runs' own")
    parser.add_argument("--entity", help="instead of the runs' own")


def run(args: argparse.Namespace) -> int:
    """Show, then send."""
    found = [segment for folder in args.folders or [Path("outputs")] for segment in find_segments(folder)]
    waiting = [segment for segment in found if args.again or not segment.sent]
    _show(waiting, len(found))
    if args.dry_run or not waiting:
        return 0
    if not has_key():
        raise ValueError("there is no W&B key here: run `wandb login` once, then this command again; nothing was sent")
    return subprocess.run(command(waiting, args), check=False).returncode


def find_segments(folder: Path) -> list[Segment]:
    """Every offline segment at or below a folder, the oldest first; those of one id stand together.

    Raises:
        ValueError: There is no such folder, or nothing of W&B in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; a run's folder is looked for, or one with runs in it")
    found = []
    for path in folder.rglob("offline-run-*"):
        if path.is_dir() and (match := NAME.fullmatch(path.name)):
            sent = any(path.glob("*.synced"))
            found.append(Segment(match[1], match[2], path, sent))
    if not found:
        raise ValueError(f"{folder}: no offline run of W&B lies there; logger=wandb logger.mode=offline writes them")
    first = {segment.run_id: min(s.started for s in found if s.run_id == segment.run_id) for segment in found}
    return sorted(found, key=lambda segment: (first[segment.run_id], segment.run_id, segment.started))


def has_key() -> bool:
    """Whether W&B knows who is asking."""
    import wandb

    try:
        return bool(wandb.Api().api_key)
    except wandb.errors.UsageError:
        return False


def command(segments: Sequence[Segment], args: argparse.Namespace) -> list[str]:
    """W&B's own command for these segments, all at once: it sends those of one run one after the other."""
    options = [f"--{key}={value}" for key in ("project", "entity") if (value := getattr(args, key))]
    options += ["--include-synced"] if args.again else []
    return [sys.executable, "-m", "wandb", "sync", "--yes", *options, *(str(segment.folder) for segment in segments)]


def _show(segments: Sequence[Segment], found: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "run", "segments", "begun")
    for run_id in dict.fromkeys(segment.run_id for segment in segments):
        own = [segment for segment in segments if segment.run_id == run_id]
        table.add_row(run_id, str(own[0].folder.parent.parent), str(len(own)), own[0].started)
    console = Console()
    if not console.is_terminal:
        console.width = 160
    if segments:
        console.print(table)
    console.print(f"{len(segments)} of {found} segments are to be sent")
