"""Search that reads a small part of an index, for galleries too large to be read whole; needs faiss."""

import math
import os
from importlib import import_module, util
from pathlib import Path
from typing import Any

import numpy as np

from callbacks.gallery import Gallery, unit
from callbacks.gallery_writing import writing
from callbacks.nearest import Floats, Places, similarities

PROBED = 32  # lists that are read for a query
EACH = 64  # vectors a list to place the lists by
COMPARED = 20  # candidates for each photo wanted, compared exactly
ROWS = 1 << 14


def search(gallery: Gallery, queries: Floats, k: int) -> tuple[Floats, Places]:
    """The k nearest photos of each query among those that faiss finds; a near one can be missed.

    Vectors are sorted into about 4 √n lists by the nearest of as many centres, in 8 bits; the lists around a query are
    read, and the best of what is in them is compared in float32. The lists are made on the first call and kept with
    the index.

    Reference: Douze et al., The Faiss library, 2024.

    Args:
        gallery: the index.
        queries: embeddings (Q, D), of any length.
        k: at most the number of photos.

    Returns:
        Similarities and indices, (Q, k) each, as of an exact search; −1 and −inf where the lists had too few photos.

    Raises:
        ValueError: faiss is not installed, k or the queries do not fit, or the lists cannot be written.
    """
    if util.find_spec("faiss") is None:
        raise ValueError("faiss is not installed: pip install faiss-cpu, or search without it, which is exact")
    gallery.check(queries, k)
    queries = unit(queries)
    _, found = lists(gallery).search(queries, min(len(gallery), COMPARED * k))
    query, column = np.nonzero(found >= 0)
    cosine = np.full(found.shape, -np.inf, np.float32)
    cosine[query, column] = similarities(queries, gallery.vectors, query, found[query, column])
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosine, order, 1), np.take_along_axis(found, order, 1)


def lists(gallery: Gallery) -> Any:
    """The lists of an index, memory-mapped; made where they are not there yet."""
    faiss = import_module("faiss")
    path = gallery.folder / gallery.about["content"] / "lists.faiss"
    if not path.is_file():
        with writing(gallery.folder):
            make(faiss, gallery.vectors, path)
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    index.nprobe = min(PROBED, index.nlist)
    return index


def make(faiss: Any, vectors: Floats, path: Path) -> None:
    """Sort vectors into lists and write these, aside first."""
    count, width = vectors.shape
    number = max(1, min(round(4 * math.sqrt(count)), count // EACH))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width), width, number, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    some = np.sort(np.random.default_rng(0).permutation(count)[: EACH * number])
    index.train(np.ascontiguousarray(vectors[some]))
    for begin in range(0, count, ROWS):
        index.add(np.ascontiguousarray(vectors[begin : begin + ROWS]))
    aside = path.with_suffix(".part")
    faiss.write_index(index, str(aside))
    os.replace(aside, path)
