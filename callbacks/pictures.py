"""How callbacks hand pictures to the report: each a title, an image and a caption, listed in one file a callback."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

LINE = 14  # pixels of a line of text
PAPER, INK = (255, 255, 255), (40, 44, 52)


@dataclass(frozen=True)
class Picture:
    """What the report shows.

    Args:
        title: a few words above it.
        image: of any size; the page makes a wide one fit.
        caption: a sentence or two below it.
        more: figures and names that go into the list with it, for whoever reads that; the page leaves them out.
    """

    title: str
    image: Image.Image
    caption: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


def write_pictures(folder: Path, name: str, pictures: Sequence[Picture]) -> None:
    """Writes `pictures/<name>-<n>.png` and, last, their list `pictures/<name>.json`; an earlier list is replaced.

    Args:
        folder: of the stage, `trainer.default_root_dir`; rank 0 alone writes.
        name: of the callback's own files; the report shows the lists in the order of their names.
        pictures: in the order in which they are shown.
    """
    home = folder / "pictures"
    home.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, picture in enumerate(pictures, 1):
        path = home / f"{name}-{number}.png"
        picture.image.save(path)
        entry = {"title": picture.title, "image": path.relative_to(folder).as_posix(), "caption": picture.caption}
        entries.append({**entry, **picture.more})
    aside = home / f"{name}.json.tmp"
    aside.write_text(json.dumps(entries, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, home / f"{name}.json")


def sheet(
    rows: Sequence[Sequence[Tensor | None]],
    labels: Sequence[Sequence[str]] | None = None,
    side: int = 96,
    gap: int = 4,
) -> Image.Image:
    """A grid of pictures, one list a row.

    Args:
        rows: uint8 pictures (3, H, W) of any size; None leaves a cell empty.
        labels: a short text below each cell, such as a figure; plain Latin letters only, for no font has every script.
        side: of a cell, in pixels.
        gap: between cells.
    """
    line = LINE if labels else 0
    columns = max(map(len, rows), default=0)
    size = gap + columns * (side + gap), gap + len(rows) * (side + line + gap)
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    for down, row in enumerate(rows):
        for across, picture in enumerate(row):
            x, y = gap + across * (side + gap), gap + down * (side + line + gap)
            if picture is not None:
                small = thumbnail(picture, side)
                page.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))
            if labels:
                draw.text((x, y + side + 1), labels[down][across], fill=INK)
    return page


def thumbnail(picture: Tensor, side: int) -> Image.Image:
    """A uint8 picture (3, H, W) whose longer side is `side`; small ones are enlarged without blurring them."""
    height, width = picture.shape[-2:]
    scale = side / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    pixels = picture.cpu()[None]
    if scale < 1:
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    elif scale > 1:
        pixels = F.interpolate(pixels.float(), size, mode="nearest").to(torch.uint8)
    return Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())
