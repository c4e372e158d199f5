"""Draws a small CIFAR-10: images of ten things in the published files, in the opcodes of Python 2's pickles."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.samples.folder import write_whole
from datamodules.samples.objects import KINDS, image

FOLDER = "cifar-10-batches-py"
BATCHES = {f"data_batch_{n}": f"training batch {n} of 5" for n in range(1, 6)} | {"test_batch": "testing batch 1 of 1"}
IMAGES = {"test_batch": 400}
OTHERS = 240  # images of each training batch
SIDE = 32

Value = int | str | Sequence[int] | Sequence[str] | NDArray[np.uint8]


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _string(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value


def _array(value: NDArray[np.uint8]) -> bytes:
    """An empty array that is then given its state: version, shape, type, whether it lies by columns, bytes."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _number(0) + b"\x85" + _string(b"b") + b"tR"
    dtype = b"cnumpy\ndtype\n(" + _string(b"u1") + _number(0) + _number(1) + b"tR("
    dtype += _number(3) + _string(b"|") + b"NNN" + _number(-1) + _number(-1) + _number(0) + b"tb"
    shape = b"(" + b"".join(_number(size) for size in value.shape) + b"t"
    return empty + b"(" + _number(1) + shape + dtype + b"\x89" + _string(value.tobytes()) + b"tb"


def _opcodes(value: Value) -> bytes:
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, int):
        return _number(value)
    if isinstance(value, str):
        return _string(value.encode())
    return b"](" + b"".join(_opcodes(item) for item in value) + b"e"


def pickled(content: Mapping[str, Value]) -> bytes:
    """A dictionary as Python 2 pickles it (protocol 2): its strings are bytes to Python 3, as published."""
    pairs = (_opcodes(key) + _opcodes(value) for key, value in content.items())
    return b"\x80\x02}(" + b"".join(pairs) + b"u."


def batch(name: str, seed: int) -> dict[str, Value]:
    """What one batch file holds: a row of three planes for each image, labels, file names."""
    number, n = list(BATCHES).index(name), IMAGES.get(name, OTHERS)
    labels = np.random.default_rng((seed, number)).permutation(np.arange(n) % len(KINDS)).tolist()
    images = [image(KINDS[k], np.random.default_rng((seed, number, at)), SIDE) for at, k in enumerate(labels)]
    files = [f"{KINDS[k]}_s_{at:06d}.png" for at, k in enumerate(labels)]
    rows = np.stack(images).transpose(0, 3, 1, 2).reshape(n, -1)
    return {"batch_label": BATCHES[name], "labels": labels, "data": rows, "filenames": files}


def draw(root: Path, seed: int = 0) -> None:
    """Draw the set into `root`: complete or not at all, and left alone if it is there.

    Args:
        root: folder to make.
        seed: of everything.
    """

    def write(aside: Path) -> None:
        folder = aside / FOLDER
        folder.mkdir()
        for name in BATCHES:
            (folder / name).write_bytes(pickled(batch(name, seed)))
        names: dict[str, Value] = {
            "num_cases_per_batch": OTHERS,
            "label_names": list(KINDS),
            "num_vis": 3 * SIDE * SIDE,
        }
        (folder / "batches.meta").write_bytes(pickled(names))

    write_whole(root, f"{FOLDER}/batches.meta", write)
