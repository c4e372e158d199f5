"""Which expert knows which product, held against the data that they are to answer for together."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

Member = Mapping[str, Any]  # {"name", "facts": what its data knew, "trunk": which of the networks}


class LabelMap:
    """The products of all experts as one list, that of the data.

    Args:
        experts: the members that each learned one brand: facts `brand`, `products`, `others`, `trained_on`.
        products: names of all products, in the order of their ids.
        brand_of: brand of each product.
        brands: names of the brands, in the order of their ids.
        held_out: photos that judge or calibrate.

    Attributes:
        order: experts' places, in the order of the brands.
        places: (p,) where in (experts, widest) product i stands, flattened.
        widths: how many products each brand has.
        unseen: for each expert with a class for strangers the brands that it never saw as such.

    Raises:
        ValueError: two experts for a brand, none for one, or products, photos or splits of other data.
    """

    def __init__(
        self, experts: Sequence[Member], products: Sequence[str], brand_of: Sequence[int], brands: Sequence[str],
        held_out: Sequence[str],
    ) -> None:  # fmt: skip
        known = self._by_brand(experts, brands)
        refuse_gaps(list(known), brands)
        self.order = [known[brand] for brand in brands]
        wanted: list[list[int]] = [[] for _ in brands]
        for product, owner in enumerate(brand_of):
            wanted[owner].append(product)
        for brand, at in known.items():
            theirs, ours = experts[at]["facts"]["products"], [products[i] for i in wanted[brands.index(brand)]]
            refuse_other_products(brand, theirs, ours)
            refuse_leak(f"the expert of {brand}", experts[at], held_out)
        self.widths = [len(each) for each in wanted]
        self.places = places(wanted, max(self.widths), len(products))
        self.unseen = {
            brand: sorted(set(brands) - {brand} - set(experts[at]["facts"]["others"]))
            for brand, at in known.items()
            if experts[at]["facts"]["others"]
        }

    def _by_brand(self, experts: Sequence[Member], brands: Sequence[str]) -> dict[str, int]:
        known: dict[str, int] = {}
        for at, member in enumerate(experts):
            brand = member["facts"].get("brand")
            if brand is None:
                raise ValueError(f"joins.experts: {member['name']} learned no brand; name the folder of the experts")
            if brand in known:
                raise ValueError(f"joins.experts: {brand} has two experts, which would answer twice: leave one out")
            if brand not in brands:
                near = difflib.get_close_matches(brand, brands, 1)
                hint = f"; is it {near[0]}?" if near else ""
                raise ValueError(f"joins.experts: there is an expert of {brand}, of which the data have no photo{hint}")
            known[brand] = at
        return known


def places(wanted: Sequence[Sequence[int]], width: int, products: int) -> Int[Tensor, " p"]:
    """Where each product stands among the padded products of all brands."""
    found = torch.zeros(products, dtype=torch.int64)
    for brand, each in enumerate(wanted):
        found[list(each)] = brand * width + torch.arange(len(each))
    return found


def refuse_gaps(known: Sequence[str], brands: Sequence[str]) -> None:
    """Every brand of the data needs an expert; without one all its photos would be called something else."""
    if missing := [brand for brand in brands if brand not in known]:
        more = f" and {len(missing) - 3} more" if missing[3:] else ""
        raise ValueError(
            f"joins.experts: no expert knows {', '.join(missing[:3])}{more}: train what is missing (only=[...]), or "
            "take these brands out of the data"
        )


def refuse_other_products(brand: str, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """An expert's classes must be the data's: the same products in the same order."""
    if list(theirs) == list(ours):
        return
    new, gone = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    found = [f"{len(each)} {word}, first {each[0]}" for each, word in ((new, "new"), (gone, "gone")) if each]
    raise ValueError(
        f"joins.experts: the expert of {brand} learned from another version of the data ("
        f"{'; '.join(found) or 'another order'}): train it anew on these"
    )


def refuse_leak(who: str, member: Member, held_out: Sequence[str]) -> None:
    """What is judged or calibrated on must not have been learned from."""
    if leaked := sorted(set(member["facts"].get("trained_on", ())) & set(held_out)):
        raise ValueError(
            f"{who} was trained on {len(leaked)} photo(s) that are held out here, first {leaked[0]}: it has another "
            "seed, other shares or another version of the data; train it anew on these"
        )
