"""Write changed copies of photos, as a trained generator makes them, and what was done to each.

DIR gets a copy of every photo below FOLDER, under the same name and of the same size, and parameters.csv with a row
for each: the six numbers of theta (where the copy reads the photo, in coordinates from -1 to 1 over its width and
height, as torch's affine_grid takes them), and what happened in words: rotation in degrees (clockwise), scale, shear,
and shift as a share of the square that the generator looked at. A file that cannot be read is named, the others are
written, and the exit code is 1.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

THETA = [f"theta_{row}{column}" for row in (1, 2) for column in (1, 2, 3)]
TABLE = "parameters.csv"
QUALITY = 95  # of formats that lose something


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its stage checkpoints")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="photos, also in folders below it")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="a new folder for the copies")
    parser.add_argument("--stage", help="whose generator (default: the last stage that has one)")
    parser.add_argument("--copies", type=int, default=1, help="of each photo, if there is noise (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="photos at once (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write the copies and their table; 1 when a photo could not be read."""
    from engine.commands.predict import find_photos

    if args.copies < 1:
        raise ValueError(f"--copies={args.copies} must be 1 or more")
    if not args.folder.is_dir():
        raise ValueError(f"{args.folder} is not a folder: name the folder that holds the photos")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"--out={args.out} is there already and is not overwritten: name a new folder")
    generator, data = find_generator(args.run, args.stage)
    if args.copies > 1 and not generator.slots:
        raise ValueError(f"--copies={args.copies}: this generator has no noise input, all copies would be the same")
    paths, _ = find_photos([str(args.folder)])
    broken = write_copies(generator, data, paths, args)
    print(f"{args.out}: copies of {len(paths) - len(broken):,} photos, and {TABLE}")
    for path, why in broken.items():
        print(f"not copied: {path}: {why}", file=sys.stderr)
    return int(bool(broken))


def find_generator(run: Path, stage: str | None) -> tuple[Any, Any]:
    """The generator of a run's last stage that has one, or of the stage named, and the stage's DataModule.

    Raises:
        ValueError: There is none.
    """
    from engine.checkpoints import find_checkpoint, load_stage
    from engine.runs import read_plan

    last = find_checkpoint(run, stage)
    names = [] if stage or run.is_file() else [name for name in read_plan(run)["stages"] if name != last.stem]
    earlier = (run / f"{name}.ckpt" for name in reversed(names))
    for checkpoint in (last, *(path for path in earlier if path.is_file())):
        module, data, _ = load_stage(checkpoint)
        for part in module.modules():
            if hasattr(part, "apply_to") and hasattr(part, "in_words"):
                return part, data
    raise ValueError(f"{stage or run} has no generator: name a run of experiment=stn_gan that trained one")


def write_copies(generator: Any, data: Any, paths: list[Path], args: argparse.Namespace) -> dict[Path, str]:
    """The copies and their table; the photos that could not be read, with the reason."""
    broken: dict[Path, str] = {}
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / TABLE, "w", encoding="utf-8", newline="") as file:
        table: Any = None
        for index, copy, theta, words in changes(generator, data, paths, broken, args):
            path = paths[index].relative_to(args.folder)
            if args.copies > 1:
                path = path.with_name(f"{path.stem}-{copy + 1}{path.suffix}")
            try:
                applied = write_copy(generator, paths[index], theta, data.transform.fit, args.out / path)
            except OSError as error:
                broken[paths[index]] = str(error)
                continue
            if table is None:
                table = csv.writer(file)
                table.writerow(["image", "photo", *THETA, *words])
            numbers = [*applied.flatten().tolist(), *words.values()]
            table.writerow([path.as_posix(), paths[index], *(f"{number:.9g}" for number in numbers)])
    return broken


def changes(
    generator: Any, data: Any, paths: list[Path], broken: dict[Path, str], args: argparse.Namespace
) -> Iterator[tuple[int, int, Any, dict[str, float]]]:
    """For each copy of each photo: its place, which copy, theta (1, 2, 3) and what it means. Fills `broken`.

    Raises:
        ValueError: The generator says something that is no number.
    """
    import torch

    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    generator.to(device)
    data.batch_size = args.batch_size
    loader = data.answering(paths)
    for batch in loader:
        for copy in range(args.copies):
            with torch.inference_mode():
                index = batch["index"].to(device)
                _, theta = generator(batch["image"].to(device), generator.draws(args.seed, copy, index))
            if not theta.isfinite().all():
                raise ValueError(f"{args.run}: its generator says numbers that are none, so its training went astray")
            words = {name: value.tolist() for name, value in generator.in_words(theta).items()}
            for row, place in enumerate(batch["index"].tolist()):
                yield place, copy, theta[row : row + 1].cpu(), {name: value[row] for name, value in words.items()}
    broken |= loader.dataset.broken


def write_copy(generator: Any, photo: Path, theta: Any, fit: str, path: Path) -> Any:
    """One photo, upright and at its own size, read as theta says; gives the theta of the whole photo."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    with Image.open(photo) as opened:
        pixels = np.array(ImageOps.exif_transpose(opened).convert("RGB"))
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    theta = of_whole_photo(theta, (image.shape[3], image.shape[2]), fit)
    changed = (generator.apply_to(image, theta)[0].clamp(0, 1) * 255).round().to(torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(changed.permute(1, 2, 0).numpy()).save(path, quality=QUALITY)
    return theta


def of_whole_photo(theta: Any, size: tuple[int, int], fit: str) -> Any:
    """Theta in the coordinates of a whole photo, from theta in those of the square that the generator looked at.

    Only so does a turn stay a turn: from -1 to 1 is a longer way over the longer side.

    Args:
        theta: (B, 2, 3).
        size: width and height of the photo.
        fit: how the square lies in the photo: `crop` in its middle, `letterbox` around it, `squash` all over it.
    """
    if fit == "squash":
        return theta
    side = min(size) if fit == "crop" else max(size)
    across, down = size[0] / side, size[1] / side
    factors = [[1.0, down / across, 1 / across], [across / down, 1.0, 1 / down]]
    return theta * theta.new_tensor(factors)
