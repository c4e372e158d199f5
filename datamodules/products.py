"""Product photos on disk: which brand and product each shows, and how the photos of a brand are shared out by seed."""

import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from datamodules.images import BadImage, decode, read_header
from datamodules.tables import read_table, refuse

PHOTO = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
PARTS = ("train", "val", "test")
SPELLINGS = {"training": "train", "valid": "val", "validation": "val"}


@dataclass(frozen=True)
class Listing:
    """Photos with what they show; `part` is train, val or test where the data say so, else empty.

    `origin` names each for messages, `unused` counts files that are no photos of a product.
    """

    paths: list[Path]
    brands: list[str]
    products: list[str]
    origin: list[str]
    part: list[str]
    unused: int = 0


def list_photos(root: Path) -> Listing:
    """The photos below a folder, as its CSV lists them, or as its folders do where there is none.

    Raises:
        ValueError: there are several CSVs, or something in it is wrong.
    """
    tables = sorted(root.glob("*.csv"))
    if len(tables) > 1:
        raise ValueError(f"{root} has {names_below(path.name for path in tables)}: keep the one CSV that counts")
    return list_table(tables[0]) if tables else list_folders(root)


def list_folders(root: Path) -> Listing:
    """Photos as `<brand>/<product>/*.jpg`; deeper folders belong to their product."""
    found = [path for path in sorted(root.rglob("*")) if path.is_file()]
    places = [path.relative_to(root) for path in found]
    places = [place for place in places if not any(part.startswith((".", "__")) for part in place.parts)]
    photos = [place for place in places if place.suffix.lower() in PHOTO and len(place.parts) > 2]
    brands, products = ([plain(place.parts[at]) for place in photos] for at in (0, 1))
    origin = [place.as_posix() for place in photos]
    paths = [root / place for place in photos]
    return Listing(paths, brands, products, origin, [""] * len(photos), len(places) - len(photos))


def list_table(path: Path) -> Listing:
    """Photos as a CSV lists them: image, brand, product and, if there is such a column, split.

    Raises:
        ValueError: a column is missing, a cell is empty, a split is unknown, or a photo is listed twice.
    """
    table = read_table(path)
    images, brands, products = ([plain(cell) for cell in table.column(name)] for name in ("image", "brand", "product"))
    given = table.column("split") if "split" in table.columns else [""] * len(images)
    parts = [SPELLINGS.get(part.lower(), part.lower()) for part in given]
    faults, seen = [], dict[str, int]()
    for at, row in enumerate(zip(images, brands, products, strict=True)):
        if not all(row):
            faults.append(f"{table.where(at)}: image, brand and product must not be empty")
        elif row[0] in seen:
            faults.append(f"{table.where(at)}: {row[0]} was listed before, {table.where(seen[row[0]])}")
        elif "split" in table.columns and parts[at] not in PARTS:
            faults.append(f"{table.where(at)}: split={given[at]!r} is none of {', '.join(PARTS)}")
        seen.setdefault(row[0], at)
    refuse(faults, "correct these rows")
    paths = [path.parent / image.replace("\\", "/") for image in images]
    return Listing(paths, brands, products, [table.where(at) for at in range(len(paths))], parts)


def plain(name: str) -> str:
    """A name in one spelling: composed characters, no space around it (file systems differ in both)."""
    return unicodedata.normalize("NFC", name).strip()


def generator(seed: int, *names: object) -> Generator:
    """Randomness that belongs to names, so that other brands do not change it."""
    digest = sha256("\n".join(map(str, names)).encode()).digest()
    return np.random.default_rng((seed, int.from_bytes(digest[:8])))


def share_out(
    products: NDArray[np.int64], units: NDArray[np.int64], shares: Sequence[float], rng: Generator
) -> NDArray[np.int64]:
    """The part of each photo of a brand: 0, which every product has a photo of, or 1, 2, ... by shares.

    Units of a product lie side by side in random order behind each other, the first of each stays in part 0, and every
    so many of the others are taken: all products give alike.

    Args:
        products: product (n,) of each photo.
        units: photos of the same unit (n,) stay together.
        shares: of the photos for part 1, 2, ...
        rng: of the choice.
    """
    part = np.zeros(len(products), dtype=np.int64)
    names, first = np.unique(units, return_index=True)
    line = np.lexsort((rng.random(len(names)), products[first]))
    owner = products[first][line]
    free = line[1:][owner[1:] == owner[:-1]]  # all but the first unit of each product
    for number, share in enumerate(shares, 1):
        wanted = min(round(share * len(names)), len(free))
        steps = ((np.arange(wanted) + rng.random()) * (len(free) / max(1, wanted))).astype(int)
        part[np.isin(units, names[free[steps]])] = number
        free = np.delete(free, steps)
    return part


def near_duplicates(paths: Sequence[Path], products: NDArray[np.int64], bits: int, threads: int) -> NDArray[np.int64]:
    """The unit (n,) of each photo: photos of a product that look nearly alike, chains of them too, are one.

    Alike are photos whose 64-bit difference hashes (is each of 8 x 8 places brighter than its right neighbour?) differ
    in at most `bits` bits. Reference: Krawetz, Kind of Like That, 2013.
    """
    with ThreadPoolExecutor(threads) as pool:
        hashes = np.array(list(pool.map(difference_hash, paths)), dtype=bool).reshape(-1, 64)
    units = np.arange(len(paths))
    for product in np.unique(products):
        members = np.flatnonzero(products == product)
        close = (hashes[members, None] != hashes[None, members]).sum(2) <= bits
        for at in range(len(members)):
            units[np.isin(units, units[members[close[at]]])] = units[members[at]]
    return units


def difference_hash(path: Path) -> NDArray[np.bool_]:
    """64 bits of a photo; of one that cannot be read none is set."""
    try:
        data = path.read_bytes()
        pixels = decode(data, read_header(data))
    except (OSError, BadImage):
        return np.zeros(64, dtype=bool)
    small = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return (small[:, :-1] > small[:, 1:]).ravel()


def coprime(count: int, least: int) -> list[int]:
    """The first `count` numbers from `least` on of which no two have a common divisor."""
    found: list[int] = []
    number = max(2, least)
    while len(found) < count:
        if all(np.gcd(number, other) == 1 for other in found):
            found.append(number)
        number += 1
    return found


def mappings(products: int, functions: int, classes: int, seed: int) -> list[NDArray[np.int64]]:
    """Label mapping: `functions` ways (products,) to sort all products into few classes, by which they can be told.

    f_j(i) = π(i) mod m_j with a seeded order π and numbers m_j >= `classes` without common divisors. By the Chinese
    remainder theorem two of fewer than m_1 · m_2 · ... products differ in one of them at least.

    Reference: Zhang et al., Large scale classification in deep neural network with Label Mapping, 2018.

    Raises:
        ValueError: so few and small functions cannot tell so many products apart.
    """
    moduli = coprime(functions, classes)
    if np.prod(np.array(moduli, dtype=float)) < products:
        raise ValueError(
            f"mapping.functions={functions} of mapping.classes={classes} tell {int(np.prod(moduli)):,} products apart, "
            f"there are {products:,}: take more of either"
        )
    order = generator(seed, "mapping").permutation(products)
    return [order % modulus for modulus in moduli]


def names_below(names: Iterable[str], most: int = 3) -> str:
    """Some names and how many more there are, for a sentence."""
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
