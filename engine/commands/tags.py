"""Show what a tag means to a run: the tags whose output weights are nearest to its own.

Tags that a tagger found in the same kind of photo lie close together: cosine of the rows of W2, 1 for the same
direction. A leading # is dropped. A tag that the run does not know is named with the nearest by spelling, the others
are answered, and the exit code is 1.
"""

import argparse
import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

Neighbours = dict[str, list[tuple[str, float]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its stage checkpoints")
    parser.add_argument("tags", nargs="+", metavar="TAG", help="tags of the run's vocabulary")
    parser.add_argument("--stage", help="which stage answers (default: the last)")
    parser.add_argument("--top", type=int, default=10, help="tags beside each (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers as JSON; - for the terminal")


def run(args: argparse.Namespace) -> int:
    """Look up, print, write what was asked for; 1 when a tag is unknown."""
    from engine.checkpoints import find_checkpoint, load_stage

    if args.top < 1:
        raise ValueError(f"--top={args.top} must be 1 or more")
    checkpoint = find_checkpoint(args.run, args.stage)
    module, _, _ = load_stage(checkpoint)
    if not hasattr(module, "nearest_words"):
        raise ValueError(f"{checkpoint} holds a {type(module).__name__}, which knows no tags: name a tagger's run")
    found, unknown = look_up(module, args.tags, args.top)
    _show(args, found, unknown)
    for tag, why in unknown.items():
        print(f"not answered: {tag}: {why}", file=sys.stderr)
    return int(bool(unknown))


def look_up(module: Any, tags: list[str], top: int) -> tuple[Neighbours, dict[str, str]]:
    """The nearest tags of each, best first, and the tags that the module does not know with what it says."""
    found: Neighbours = {}
    unknown = {}
    for given in tags:
        tag = unicodedata.normalize("NFC", given.strip().removeprefix("#"))
        try:
            found[tag] = module.nearest_words(tag, top)
        except ValueError as error:
            unknown[tag] = str(error)
    return found, unknown


def _show(args: argparse.Namespace, found: Neighbours, unknown: dict[str, str]) -> None:
    if args.json:
        text = json.dumps({"tags": found, "unknown": unknown}, ensure_ascii=False, indent=1)
        print(text) if str(args.json) == "-" else args.json.write_text(text + "\n", encoding="utf-8")
    if str(args.json) != "-":
        _print_tables(found)


def _print_tables(found: Neighbours) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    for tag, neighbours in found.items():
        table = Table("nearest", "cosine", title=escape(tag))
        for word, cosine in neighbours:
            table.add_row(escape(word), f"{cosine:.3f}")
        Console().print(table)
