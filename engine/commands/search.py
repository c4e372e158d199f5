"""Find the photos that are most like a photo, by the embedding of a run.

QUERIES are files, folders (searched below) or globs. They are looked up in the index that the run's test wrote of its
own photos, or with --gallery in a folder of yours: its photos are embedded the first time, later only new and changed
ones, and the index is kept with the run (or where --index says). Cosine similarity, 1 for the same photo, exact unless
--faiss is given. A query that cannot be read is named, the others are answered, and the exit code is 1.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from engine.commands.predict import find_photos, read_boxes

APPROXIMATE = "callbacks.approximate.search"


class Query(NamedTuple):
    """A photo to look up, its embedding (D,), and its place in the index if it is there."""

    path: Path
    vector: Any
    place: int | None


class Hit(NamedTuple):
    """A photo that was found: what it is called, how similar it is, and its place in the index."""

    name: str
    cosine: float
    place: int


class Answer(NamedTuple):
    """A query, what it is called, and what was found."""

    path: Path
    name: str
    hits: list[Hit]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its stage checkpoints")
    parser.add_argument("queries", nargs="+", metavar="QUERIES", help="photos, folders or globs")
    parser.add_argument("--gallery", type=Path, metavar="FOLDER", help="photos to look in (default: the run's own)")
    parser.add_argument(
        "--index", type=Path, metavar="FOLDER", help="where the gallery's index is kept, or the index itself"
    )
    parser.add_argument("--top", type=int, default=5, help="photos a query (default %(default)s)")
    parser.add_argument("--boxes", type=Path, metavar="CSV", help="image,xmin,ymin,xmax,ymax: the part of each query")
    parser.add_argument("--stage", help="whose embedding (default: the last stage's)")
    parser.add_argument("--faiss", action="store_true", help="read a small part of a huge index; may miss a photo")
    parser.add_argument("--batch-size", type=int, default=64, help="photos at once (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers as JSON; - for the terminal")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a contact sheet, each query first")


def run(args: argparse.Namespace) -> int:
    """Look up, print, write what was asked for; 1 when a query could not be read."""
    from engine.checkpoints import find_checkpoint
    from engine.galleries import Embedding, legible, looked_at, name_broken, open_gallery

    if args.top < 1:
        raise ValueError(f"--top={args.top} must be 1 or more")
    paths, missing = find_photos(args.queries)
    boxes = read_boxes(args.boxes) if args.boxes else None
    embedding = Embedding(find_checkpoint(args.run, args.stage), args.device, args.batch_size)
    gallery = open_gallery(embedding, args.gallery, args.index)
    queries, unreadable = embedded(embedding, gallery, paths, boxes)
    broken = missing | {legible(path): why for path, why in unreadable.items()}
    found = look_up(gallery, queries, args.top, args.faiss) if queries else []
    note = f"{looked_at(embedding, boxes, args.gallery is None)} {_looked_in(gallery, args)}"
    _show(args, found, broken, note)
    if args.html:
        _write_page(args.html, found, broken, note, gallery, embedding)
    name_broken("not answered", broken)
    return int(bool(broken))


def embedded(embedding: Any, gallery: Any, paths: list[Path], boxes: Any) -> tuple[list[Query], dict[Path, str]]:
    """The queries that can be read, and the others with the reason.

    One that is in the index has its embedding there, made of the part of it by which the run knows it.
    """
    from engine.galleries import stored

    known = {} if boxes else stored(gallery, paths)
    read, vectors, unreadable = embedding([path for path in paths if path not in known], boxes)
    queries = {path: Query(path, vector, None) for path, vector in zip(read, vectors, strict=True)}
    queries |= {path: Query(path, gallery.vectors[place], place) for path, place in known.items()}
    return [queries[path] for path in paths if path in queries], unreadable


def look_up(gallery: Any, queries: list[Query], top: int, faiss: bool) -> list[Answer]:
    """For each query its nearest photos, best first; one that is in the gallery comes first, before equal ones.

    Args:
        gallery: the index.
        queries: what to look up.
        top: photos wanted of each; all there are where the gallery is smaller.
        faiss: search only a part.
    """
    import numpy as np
    from hydra.utils import get_method

    from engine.galleries import legible, shown_name

    k = min(top, len(gallery))
    vectors = np.stack([query.vector for query in queries])
    found = get_method(APPROXIMATE)(gallery, vectors, k) if faiss else gallery.search(vectors, k)
    answers = []
    for query, cosines, places in zip(queries, *(part.tolist() for part in found), strict=True):
        own = {query.place: 1.0} if query.place is not None else {}
        near = own | {at: cosine for at, cosine in zip(places, cosines, strict=True) if at >= 0 and at not in own}
        hits = [Hit(shown_name(gallery, at), round(cosine, 6), at) for at, cosine in list(near.items())[:k]]
        answers.append(Answer(query.path, legible(query.path), hits))
    return answers


def _looked_in(gallery: Any, args: argparse.Namespace) -> str:
    few = f", which is fewer than the {args.top} asked for" if len(gallery) < args.top else ""
    how = " Only a part was read (--faiss): a near photo may be missing." if args.faiss else ""
    return f"Looked in {len(gallery):,} photo{'s' if len(gallery) > 1 else ''} of {gallery.root}{few}.{how}"


def _show(args: argparse.Namespace, found: list[Answer], broken: dict[str, str], note: str) -> None:
    if args.json:
        answers = [
            {"path": answer.name, "nearest": [{"path": hit.name, "cosine": hit.cosine} for hit in answer.hits]}
            for answer in found
        ]
        text = json.dumps({"note": note, "answers": answers, "broken": broken}, ensure_ascii=False, indent=1)
        print(text) if str(args.json) == "-" else args.json.write_text(text + "\n", encoding="utf-8")
    if str(args.json) != "-":
        _print_tables(found, note)


def _print_tables(found: list[Answer], note: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console()
    for answer in found:
        table = Table(Column("photo", overflow="fold"), "cosine", title=escape(answer.name), title_justify="left")
        for hit in answer.hits:
            table.add_row(escape(hit.name), f"{hit.cosine:.3f}")
        console.print(table)
    console.print(note, markup=False)


def _write_page(
    path: Path, found: list[Answer], broken: dict[str, str], note: str, gallery: Any, embedding: Any
) -> None:
    from engine.galleries import card
    from engine.report import thumbnail, write_page

    rows = [
        {
            "name": answer.name,
            "uri": thumbnail(answer.path),
            "cards": [card(gallery, hit.place, hit.cosine, embedding) for hit in answer.hits],
        }
        for answer in found
    ]
    write_page(path, "search.html.j2", rows=rows, broken=broken, note=note)
