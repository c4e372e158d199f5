"""The pages that people open: a run's report, and the answers to photos that someone asked about.

A page is one file that holds everything it shows. It loads nothing, runs no script, and follows the reader's light or
dark scheme. All that comes from the user (class names, paths, errors) is escaped by the templates.
"""

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageDraw, ImageOps

from engine import review, sections
from engine.record import Record, Run, Stage, read_run
from engine.results import figure, judged_stage, result_tables, scores_of, verdict
from engine.runs import write_text

PAGES = Path(__file__).parent / "pages"
THUMBNAIL = 320
# Fits of many experts would make a page of many screens: above this many stages only the judged one is unfolded.
MOST_UNFOLDED = 3


def write_report(run: Path) -> Path:
    """Writes `report.html` into a run folder from the files that lie there, whatever state the run is in.

    Args:
        run: The run folder.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: where there is no such folder.
    """
    record = read_run(run)
    return write_page(run / "report.html", "report.html.j2", **_report_view(record))


def write_answers(path: Path, answers: Sequence[Record], note: str) -> Path:
    """Writes the sheet of answers to photos: thumbnails with the best classes of each task, what was broken on top.

    Args:
        path: The page to write.
        answers: One for each photo: `path`; `answers` {task: [(class, probability), ...]}, best first; `box` (left,
            top, right, bottom in pixels) where one was given; or `error`, a sentence, for a photo that cannot be read.
        note: A sentence on what was looked at (boxes, or the whole photo) and by which run.

    Returns:
        The path of the page.
    """
    good = [
        {**answer, "uri": thumbnail(Path(answer["path"]), answer.get("box")), "name": str(answer["path"])}
        for answer in answers
        if not answer.get("error")
    ]
    broken = [answer for answer in answers if answer.get("error")]
    return write_page(path, "answers.html.j2", answers=good, broken=broken, note=note)


def write_page(path: Path, template: str, **content: Any) -> Path:
    """Writes a page from one of the templates, aside first; returns its path."""
    write_text(path, _pages().get_template(template).render(**content))
    return path


def thumbnail(photo: Path | Image.Image | None, box: Sequence[float] | None = None) -> str | None:
    """A photo at page size as a data URI, its box drawn in; None where it cannot be read any more."""
    if photo is None:
        return None
    try:
        with photo if isinstance(photo, Image.Image) else Image.open(photo) as opened:
            return sections.data_uri(_small(opened, box), "image/jpeg")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


@cache
def _pages() -> Environment:
    # Strict: a name misspelt in a template fails in the tests instead of leaving a gap on the page.
    pages = Environment(
        loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    pages.filters |= {"figure": figure, "duration": sections.duration, "percent": _percent, "width": _width}
    return pages


def _report_view(run: Run) -> dict[str, Any]:
    shown = [stage for stage in run.stages if stage.started]
    return {
        "run": run,
        "verdict": verdict(run),
        "overview": sections.overview(run),
        "stages": [_stage_view(run, stage, unfold=len(shown) <= MOST_UNFOLDED) for stage in shown],
        "theirs": {"cite": "", "note": "", "figures": {}} | (run.config.get("theirs") or {}),
        "timings": sections.timings(run),
        "environment": sections.environment_rows(run),
        "config": _text(run.folder / "config.yaml"),
    }


def _stage_view(run: Run, stage: Stage, unfold: bool) -> dict[str, Any]:
    twin = next((s for s in run.stages[: run.stages.index(stage)] if s.data and s.data == stage.data), None)
    return {
        "name": stage.name,
        "unfold": unfold or stage is judged_stage(run),
        "tables": result_tables(run, stage),
        "remark": scores_of(stage)[1],
        "curves": sections.learning_curves(run, stage),
        "confusions": sections.confusions(stage),
        "examples": sections.examples(stage),
        "pictures": sections.pictures(stage),
        "suspects": review.suspects(stage),
        "judgements": review.judgements(stage),
        "parameters": sections.parameter_rows(stage),
        "data": stage.data,
        "twin": twin.name if twin else None,
        "classes": sections.class_tables(stage),
    }


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _percent(value: float | None) -> str:
    """A share as whole per cents, with a decimal where the whole ones would say nothing."""
    if value is None or value != value:
        return "–"
    return f"{value:.1%}" if 0 < value < 0.0995 or 0.9905 < value < 1 else f"{value:.0%}"


def _width(value: float | None) -> str:
    """A share as a CSS width; anything that is none is no bar."""
    return f"{100 * min(max(value, 0.0), 1.0):.1f}%" if value is not None and value == value else "0%"


def _small(photo: Image.Image, box: Sequence[float] | None) -> bytes:
    photo = ImageOps.exif_transpose(photo)
    if photo.mode.startswith("I"):
        photo = photo.convert("I").point(lambda value: value / 256).convert("L")  # 16-bit grey
    scale = min(1.0, THUMBNAIL / max(photo.size))
    small = photo.convert("RGB").resize([max(1, round(side * scale)) for side in photo.size])
    if box is not None:
        ImageDraw.Draw(small).rectangle([side * scale for side in box], outline=(232, 139, 46), width=2)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=82)
    return file.getvalue()
