"""Pickles of plain values and arrays, read without running anything that they ask for.

A pickle is a program: an ordinary reader imports what it names, calls it, and even numpy's own functions can be given
arguments that damage memory. Here every name that arrays need (as Python 2, Python 3 and numpy before and after version
2 spell them) stands for a harmless double below, and any other name is refused.
"""

import pickle
import re
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

NUMBERS = re.compile(r"[biuf][1248]")  # types that an array may have


def text(value: str | bytes) -> str:
    """A string, which comes as bytes from Python 2."""
    return value.decode("latin1") if isinstance(value, bytes) else value


class _Forbidden(Exception):
    """A pickle names something that is no data."""


class _Type:
    """Stands for numpy.dtype: a type of numbers, and no other."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        if not NUMBERS.fullmatch(text(name)):
            raise _Forbidden(f"an array of type {text(name)!r}")
        self.numpy = np.dtype(text(name))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numpy = self.numpy.newbyteorder(cast(Any, text(state[1])))


class _Array:
    """Stands for an array that is made empty and filled afterwards, as pickles before protocol 5 do."""

    def __init__(self, *_: object) -> None:
        self.value: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_column, content = state
        self.value = _array(content, dtype, shape, "F" if by_column else "C").value


def _array(content: bytes, dtype: _Type, shape: tuple[int, ...], order: Any, *_: object) -> _Array:
    array = _Array()
    array.value = np.frombuffer(content, dtype.numpy).reshape(shape, order=order)
    return array


def _scalar(dtype: _Type, content: bytes) -> Any:
    return np.frombuffer(content, dtype.numpy)[0].item()


def _encode(string: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in a protocol of Python 2."""
    if encoding != "latin1":
        raise _Forbidden(f"the encoding {encoding!r}")
    return string.encode("latin1")


class _Reader(pickle.Unpickler):
    """Knows the doubles."""

    known: dict[tuple[str, str], object] = {  # noqa: RUF012  # of pickle's own making, one for all
        ("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): _Type, ("_codecs", "encode"): _encode,
        ("__builtin__", "bytes"): bytes, ("builtins", "bytes"): bytes,
    }  # fmt: skip
    for core in ("numpy.core", "numpy._core"):
        known[f"{core}.multiarray", "_reconstruct"] = _Array
        known[f"{core}.multiarray", "scalar"] = _scalar
        known[f"{core}.numeric", "_frombuffer"] = _array

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise _Forbidden(f"{module}.{name}")
        return self.known[module, name]

    def persistent_load(self, pid: object) -> NoReturn:
        raise _Forbidden(f"an object of another program, {pid!r}")


def read_pickle(path: Path) -> dict[str, Any]:
    """A dictionary of plain values and arrays; its keys are text, other strings of Python 2 are bytes.

    Args:
        path: of the file.

    Raises:
        ValueError: it was cut short, is no pickle of a dictionary, or asks for anything but numbers, arrays and text.
    """
    try:
        with path.open("rb") as file:
            found = _Reader(file, encoding="bytes").load()
    except _Forbidden as error:
        raise ValueError(
            f"{path} asks for {error}, for which a data file has no use, and was not read any further: it may be an "
            "attack, so take the file from the data set's own site"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path} was cut short or is no pickle ({error}): copy or download it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__} where a dictionary is expected: copy it again")
    return {text(key): value.value if isinstance(value, _Array) else value for key, value in found.items()}
