"""Write a run as ONNX: model.onnx, and model.json with what goes in, the class names, and how it was checked.

Pixels go in as they are; the normalisation is inside. Probabilities come out, or an embedding where a technique has no
classes. The file is run beside the checkpoint on PHOTOS, or on the run's own test photos, before it is called done.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its stage checkpoints")
    parser.add_argument("photos", nargs="*", metavar="PHOTOS", help="to check with: photos, folders or globs")
    parser.add_argument("--stage", help="which stage (default: the last)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="(default: <run>/<stage>/onnx)")
    parser.add_argument("--most", type=int, default=64, help="photos to check with (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Export, check, say where it lies."""
    from engine.checkpoints import find_checkpoint, load_stage
    from engine.commands.predict import find_photos

    _need_onnx()
    checkpoint = find_checkpoint(args.run, args.stage)
    module, data, content = load_stage(checkpoint)
    paths = find_photos(args.photos)[0] if args.photos else []
    from engine.export import write_folder

    if args.most < 1:
        raise ValueError(f"--most={args.most} must be 1 or more")
    folder = args.out or checkpoint.with_suffix("") / "onnx"
    done = write_folder(folder, content, module, data, list(_batches(data, paths, args.most)))
    size = (folder / "model.onnx").stat().st_size / 2**20
    print(
        f"{folder}: {size:.1f} MiB; on {done.photos} photos the answers are at most {done.largest:.1g} from the "
        f"checkpoint's, the first answer is the same for {done.agreeing:.0%}"
    )
    return 0


def _need_onnx() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ValueError(f"export needs {', '.join(missing)}: pip install 'nunchi[onnx]'")


def _batches(data: Any, paths: list[Path], most: int) -> Iterator[dict[str, Any]]:
    """Batches of the photos that were named, or of the run's own test (or validation) split, `most` pictures in all.

    Raises:
        ValueError: There are neither.
    """
    if paths:
        loader = data.answering(paths[:most], None)
    else:
        if not Path(data.root).exists():
            raise ValueError(f"{data.root}: the run's photos are not there any more; name some to check the file with")
        data.setup("test")
        loader = data.test_dataloader() if "test" in data.splits else data.val_dataloader()
    seen = 0
    for batch in loader:
        yield {"image": batch["image"][: most - seen]}
        seen += len(batch["image"])
        if seen >= most:
            return
    if not seen:
        raise ValueError("none of the photos could be read, so the file could not be checked")
