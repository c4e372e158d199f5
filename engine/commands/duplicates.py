"""List photos that are nearly the same, by the embedding of a run.

They are looked for in the index that the run's test wrote of its own photos, which finds copies across its splits, or
with --gallery in a folder of yours, whose index is kept with the run (or where --index says). A group holds photos of
which each is that similar to another one of it. All pairs are compared: 100,000 photos take some minutes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

Group = list[tuple[int, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its stage checkpoints")
    parser.add_argument("--gallery", type=Path, metavar="FOLDER", help="photos to look in (default: the run's own)")
    parser.add_argument(
        "--index", type=Path, metavar="FOLDER", help="where the gallery's index is kept, or the index itself"
    )
    parser.add_argument("--above", type=float, default=0.98, help="cosine from which on (default %(default)s)")
    parser.add_argument("--stage", help="whose embedding (default: the last stage's)")
    parser.add_argument("--batch-size", type=int, default=64, help="photos at once (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the groups as JSON; - for the terminal")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a contact sheet, a row a group")


def run(args: argparse.Namespace) -> int:
    """Compare, print, write what was asked for."""
    from engine.checkpoints import find_checkpoint
    from engine.galleries import Embedding, open_gallery

    if not -1 < args.above <= 1:
        raise ValueError(f"--above={args.above} is not a cosine similarity: give a number up to 1, such as 0.98")
    embedding = Embedding(find_checkpoint(args.run, args.stage), args.device, args.batch_size)
    gallery = open_gallery(embedding, args.gallery, args.index)
    groups = find_groups(gallery, args.above)
    note = (
        f"{sum(map(len, groups)):,} of {len(gallery):,} photos of {gallery.root} are in {len(groups):,} "
        f"group{'' if len(groups) == 1 else 's'} of photos with a cosine similarity of {args.above:g} or more."
    )
    _show(args, groups, note, gallery)
    if args.html:
        _write_page(args.html, groups, note, gallery, embedding)
    return 0


def find_groups(gallery: Any, threshold: float) -> list[Group]:
    """The groups, largest first; of each photo its place, and how similar it is to the first of its group."""
    return [
        list(zip(places, (gallery.vectors[places] @ gallery.vectors[places[0]]).tolist(), strict=True))
        for places in gallery.groups(threshold)
    ]


def _show(args: argparse.Namespace, groups: list[Group], note: str, gallery: Any) -> None:
    from engine.galleries import shown_name

    named = [[(shown_name(gallery, place), cosine) for place, cosine in group] for group in groups]
    if args.json:
        plain = [[{"path": name, "cosine": round(cosine, 6)} for name, cosine in group] for group in named]
        text = json.dumps({"note": note, "groups": plain}, ensure_ascii=False, indent=1)
        print(text) if str(args.json) == "-" else args.json.write_text(text + "\n", encoding="utf-8")
    if str(args.json) != "-":
        _print_table(named, note)


def _print_table(groups: list[list[tuple[str, float]]], note: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table("group", Column("photo", overflow="fold"), "cosine to the first")
    for number, group in enumerate(groups, 1):
        for name, cosine in group:
            table.add_row(str(number), escape(name), f"{cosine:.3f}")
        table.add_section()
    console = Console()
    if groups:
        console.print(table)
    console.print(note, markup=False)


def _write_page(path: Path, groups: list[Group], note: str, gallery: Any, embedding: Any) -> None:
    from engine.galleries import card
    from engine.report import write_page

    rows = [[card(gallery, place, cosine, embedding) for place, cosine in group] for group in groups]
    write_page(path, "duplicates.html.j2", groups=rows, note=note)
