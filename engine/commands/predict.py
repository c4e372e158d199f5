"""Answer for photos: the best classes of each task, with probabilities.

PATHS are files, folders (searched below) or globs. The run's folder alone is needed, wherever it was moved. A file that
cannot be read is named, the others are answered, and the exit code is 1.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterable
from glob import glob
from pathlib import Path
from typing import Any

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
Answer = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its stage checkpoints")
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="photos, folders or globs")
    parser.add_argument("--stage", help="which stage answers (default: the last)")
    parser.add_argument(
        "--boxes", type=Path, metavar="CSV", help="image,xmin,ymin,xmax,ymax: the part of each photo to look at"
    )
    parser.add_argument("--top-k", type=int, default=3, help="classes a task (default %(default)s)")
    parser.add_argument("--similar", type=int, default=0, metavar="K", help="and the K most similar folders (products)")
    parser.add_argument("--batch-size", type=int, default=64, help="photos at once (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers as JSON; - for the terminal")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one row a photo, task and class")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the photos")


def run(args: argparse.Namespace) -> int:
    """Answer, print, write what was asked for; 1 when a photo could not be read."""
    from engine.checkpoints import find_checkpoint, load_stage

    paths, broken = find_photos(args.paths)
    module, data, content = load_stage(find_checkpoint(args.run, args.stage))
    boxes = read_boxes(args.boxes) if args.boxes else None
    answers, unreadable = answer(module, data, paths, boxes, args)
    if args.similar:
        _add_similar(answers, args)
    broken |= {str(path): why for path, why in unreadable.items()}
    _show(args, answers, broken, _note(content, boxes))
    for path, why in broken.items():
        print(f"not answered: {path}: {why}", file=sys.stderr)
    return int(bool(broken))


def _add_similar(answers: list[Answer], args: argparse.Namespace) -> None:
    from engine.checkpoints import find_checkpoint
    from engine.galleries import Embedding
    from engine.similar import similar

    embedding = Embedding(find_checkpoint(args.run, args.stage), args.device, args.batch_size)
    found = similar(embedding, [Path(row["path"]) for row in answers], args.similar, args.html is not None)
    for row in answers:
        row["similar"] = found.get(Path(row["path"]), [])


def find_photos(patterns: Iterable[str]) -> tuple[list[Path], dict[str, str]]:
    """The photos that files, folders and globs name, each once, and what named none with the reason.

    Raises:
        ValueError: Nothing at all was found.
    """
    found: dict[Path, None] = {}
    missing = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            here = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        else:
            here = [path] if path.exists() else sorted(map(Path, glob(pattern, recursive=True)))
        found |= dict.fromkeys(here)
        if not here:
            missing[pattern] = "no photo in this folder" if path.is_dir() else "there is no such file"
    if not found:
        raise ValueError("; ".join(f"{pattern}: {why}" for pattern, why in missing.items()))
    return list(found), missing


def read_boxes(path: Path) -> dict[str, tuple[int, int, int, int]]:
    """`image -> (xmin, ymin, xmax, ymax)` in pixels, from a CSV; FASCODE's own column names are understood too.

    Raises:
        ValueError: A column is missing or a value is no number: file and row are named.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("image", "xmin", "ymin", "xmax", "ymax")
    fascode = ("image_name", "BBox_xmin", "BBox_ymin", "BBox_xmax", "BBox_ymax")
    columns = next((c for c in (names, fascode) if rows and set(c) <= rows[0].keys()), None)
    if columns is None:
        raise ValueError(
            f"{path}: the columns {', '.join(names)} are needed, there are {', '.join(rows[0] if rows else [])}"
        )
    boxes = {}
    for number, row in enumerate(rows, 2):
        try:
            x0, y0, x1, y1 = (int(float(row[c])) for c in columns[1:])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, row {number}: a box needs four numbers") from error
        boxes[row[columns[0]]] = (x0, y0, x1, y1)
    return boxes


def answer(
    module: Any, data: Any, paths: list[Path], boxes: Any, args: argparse.Namespace
) -> tuple[list[Answer], dict[Path, str]]:
    """The answers in the order of `paths`, and the photos that could not be read with the reason."""
    import torch

    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    module.to(device)
    data.batch_size = args.batch_size
    loader = data.answering(paths, boxes)
    answers = []
    for batch in loader:
        batch = {key: value.to(device) if hasattr(value, "to") else value for key, value in batch.items()}
        with torch.inference_mode():
            found = module.answers(batch, args.top_k)
        answers += [{"path": str(paths[i]), "answers": each} for i, each in zip(batch["index"], found, strict=True)]
    return answers, loader.dataset.broken


def _note(content: dict[str, Any], boxes: Any) -> str:
    note = (
        "Boxes were given: each answer is for the part of the photo in its box."
        if boxes
        else "The whole photo was used."
    )
    if not boxes and "margin" in content["stage"]["data"]:
        note += " The network was trained on boxes around the subject; --boxes CSV gives such boxes."
    return note


def _show(args: argparse.Namespace, answers: list[Answer], broken: dict[str, str], note: str) -> None:
    if args.json:
        plain = [_without_pictures(row) for row in answers]
        text = json.dumps({"note": note, "answers": plain, "broken": broken}, ensure_ascii=False, indent=1)
        print(text) if str(args.json) == "-" else args.json.write_text(text + "\n", encoding="utf-8")
    if args.csv:
        _write_csv(args.csv, answers)
    if args.html:
        from engine.report import write_answers

        listed = [{"path": path, "error": why} for path, why in broken.items()]
        write_answers(args.html, [*answers, *listed], note)
    if str(args.json) != "-":
        _print_table(answers, note)


def _without_pictures(row: Answer) -> Answer:
    if "similar" not in row:
        return row
    return row | {"similar": [{key: value for key, value in each.items() if key != "uri"} for each in row["similar"]]}


def _write_csv(path: Path, answers: list[Answer]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "task", "rank", "class", "probability"])
        for row in answers:
            for task, classes in row["answers"].items():
                for rank, (name, probability) in enumerate(classes, 1):
                    writer.writerow([row["path"], task, rank, name, f"{probability:.6f}"])


def _print_table(answers: list[Answer], note: str) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    tasks = list(answers[0]["answers"]) if answers else []
    more = ["similar"] if any(row.get("similar") for row in answers) else []
    table = Table(Column("photo", overflow="fold"), *tasks, *more, caption=note, show_lines=True)
    for row in answers:
        cells = ["\n".join(f"{name} {probability:.1%}" for name, probability in row["answers"][task]) for task in tasks]
        near = "\n".join(f"{each['name']} {each['cosine']:.3f}" for each in row.get("similar", []))
        table.add_row(row["path"], *cells, *([near] if more else []))
    Console().print(table)
