"""A small data set in FASCODE's layout, written file by file, so that a test can spoil exactly one thing of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from datamodules.fascode import FASCODE
from tests.conftest import ROOT

COLUMNS = ["image_name", "BBox_xmin", "BBox_ymin", "BBox_xmax", "BBox_ymax", "Daily", "Gender", "Embellishment"]
FOLDERS = {"train": "Train", "valid": "Valid", "test": "Test"}
COUNTS = {"train": 14, "valid": 6, "test": 5}
SIZE = (48, 64)  # width, height of the photos
BOX = [4, 6, 40, 60]


def pixels(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Soft random shapes, different for each seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8))
    return np.array(small.resize(size, Image.Resampling.BICUBIC))


def save(path: Path, seed: int, size: tuple[int, int] = SIZE, **options: Any) -> Path:
    """Write a photo in the format that its ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, size)).save(path, **options)
    return path


def hurt(path: Path) -> None:
    """Write a JPEG with damage that only decoding shows: its middle third is noise."""
    save(path, 1, (200, 200), quality=95)
    data = bytearray(path.read_bytes())
    begin, end = len(data) // 3, 2 * len(data) // 3
    data[begin:end] = np.random.default_rng(0).integers(1, 255, end - begin, dtype=np.uint8).tobytes()
    path.write_bytes(data)


def table(path: Path, rows: Sequence[Sequence[object]], columns: Sequence[str] = COLUMNS) -> None:
    """Write a CSV."""
    lines = [",".join(map(str, row)) for row in [columns, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows(split: str) -> list[list[Any]]:
    """Rows of a split: sub-folder in the name, a box, three ids that run through all classes."""
    return [[f"{n % 3:03d}/{n}.jpg", *BOX, n % 7, n % 6, n % 3] for n in range(COUNTS[split])]


def layout(root: Path) -> Path:
    """Write the whole set; no two photos are the same."""
    for number, (split, folder) in enumerate(FOLDERS.items()):
        table(root / f"info_etri20_emotion_{split}.csv", rows(split))
        for at, row in enumerate(rows(split)):
            save(root / folder / row[0], 100 * number + at, quality=95)
    return root


def csv_of(root: Path, split: str) -> Path:
    return root / f"info_etri20_emotion_{split}.csv"


def module(root: Path, **changes: Any) -> FASCODE:
    """The DataModule with the settings of its YAML, small, and some changed."""
    settings = yaml.safe_load((ROOT / "conf" / "datamodules" / "fascode.yaml").read_text(encoding="utf-8"))
    settings.pop("_target_")
    plain = {"root": root, "seed": 0, "on_leak": "error", "on_bad_image": "error", "batch_size": 4, "image_size": 32}
    return FASCODE(**{**settings, **plain, **changes})


def ready(folder: Path) -> FASCODE:
    """A set of 14, 6 and 5 photos in a folder of its own, set up."""
    (folder / "data").mkdir()
    made = module(layout(folder / "data"))
    made.setup("fit")
    return made
