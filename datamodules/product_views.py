"""Views on the photos of many brands: what one brand's expert sees of them, and all under a mapping of their labels."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from datamodules.photos import Photos
from datamodules.products import generator, mappings
from datamodules.splits import Splits
from datamodules.tables import MISSING

OTHERS = "(other brands)"
Facts = dict[str, Any]


def expert_view(splits: Splits, facts: Mapping[str, Any], brand: str, others: float, seed: int) -> tuple[Splits, Facts]:
    """One brand's photos, and those of others that its expert shall tell from its own, as a class of their own.

    A photo without a product is nobody's.

    Args:
        splits: all photos.
        facts: of all photos: `classes` and `brand_of`.
        brand: the expert's.
        others: photos of other brands for each of its own.
        seed: of which others are drawn.

    Returns:
        The splits, labelled by `product` alone, and their facts.

    Raises:
        ValueError: others are wanted, and there is no other brand.
    """
    names = facts["classes"]
    own = np.flatnonzero(np.array(facts["brand_of"]) == names["brand"].index(brand))
    titles = [names["product"][at] for at in own]
    strangers = sorted({name for name in names["brand"] if name != brand}) if others else []
    if others and not strangers:
        raise ValueError(f"others={others}: the data have no other brand than {brand}: set others=0")
    found = {name: _beside_others(photos, own, others, generator(seed, brand, name)) for name, photos in splits.items()}
    classes = {"product": titles + ([OTHERS] if strangers else [])}
    return found, {"classes": classes, "products": titles, "brand": brand, "others": strangers}


def _beside_others(photos: Photos, own: np.ndarray, others: float, rng: np.random.Generator) -> Photos:
    products = photos.labels["product"]
    mine = np.isin(products, own)
    ours, theirs = np.flatnonzero(mine), np.flatnonzero(~mine & (products != MISSING))
    drawn = rng.permutation(theirs)[: min(round(others * len(ours)), len(theirs))]
    at = np.sort(np.concatenate([ours, drawn]))
    chosen = photos.keep(at)
    local = np.searchsorted(own, products[at]).clip(max=len(own) - 1)
    chosen.labels = {"product": np.where(mine[at], local, len(own))}
    return chosen


def mapped_view(
    splits: Splits, facts: Mapping[str, Any], mapping: Mapping[str, int], seed: int
) -> tuple[Splits, Facts]:
    """All photos, labelled with the classes of one mapping function.

    Args:
        splits: all photos.
        facts: of all photos: `classes`.
        mapping: `index` of the function that is wanted, how many `functions` there are, and `classes` that each has.
        seed: of the functions.

    Raises:
        ValueError: there is no such function, or they do not tell all products apart.
    """
    index, functions = mapping["index"], mapping["functions"]
    if not 0 <= index < functions:
        raise ValueError(f"mapping.index={index} is none of 0 to {functions - 1} (mapping.functions={functions})")
    products = facts["classes"]["product"]
    used, table = np.unique(mappings(len(products), functions, mapping["classes"], seed)[index], return_inverse=True)
    for photos in splits.values():
        ids = photos.labels["product"]
        photos.labels = {"product": np.where(ids == MISSING, MISSING, table[ids])}
    names = [f"class {number} of mapping {index}" for number in used]
    return splits, {"classes": {"product": names}, "products": products, "mapping": table.tolist()}


def of_products(photos: Photos, products: Collection[int]) -> Photos:
    """The photos of some products alone."""
    return photos.keep(np.flatnonzero(np.isin(photos.labels["product"], list(products))))
