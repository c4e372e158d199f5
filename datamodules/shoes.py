"""Photos of products by brand: all of them, one brand's for its expert, or all under a mapping of their labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from datamodules.base import ImageDataModule
from datamodules.photos import Photos
from datamodules.product_views import expert_view, mapped_view, of_products
from datamodules.products import PARTS, Listing, generator, list_photos, names_below, near_duplicates, share_out
from datamodules.revision import Implied, Revision
from datamodules.samples import shoes as sample
from datamodules.splits import Keys, Splits, count, settle_leak, twins
from datamodules.tables import refuse
from datamodules.transforms import Augment, Transform


class Shoes(ImageDataModule):
    """Products of several brands, as `<brand>/<product>/*.jpg` or in a CSV `image,brand,product[,split]`.

    A brand's photos are split by the seed and the brand's own files alone: a brand that is added later moves no photo
    of another one. Every product has photos in train; the others are spread over val and test product by product.

    What a batch's labels say depends on the view. All photos: `product` and `brand`. With `brand`, one brand's photos
    and, if `others` asks for it, photos of other brands that its expert shall know as strangers. With `mapping.index`,
    all photos, `product` being the class that one of several mapping functions gives the product.

    `labels` are revised before the view is taken, so that every view learns from the same ones: errors are planted in
    products, verdicts say of all photos which product or brand they show. A photo that is given another product changes
    its brand with it; one whose product is dropped is no expert's.

    Args:
        root: folder of the photos, or of the CSV file.
        batch_size: of the whole, over all devices.
        seed: of order, augmentation and splits.
        threads: that decode.
        on_leak: error, drop or warn about a photo that shows two products.
        on_bad_image: error, or skip a broken photo.
        image_size: side of the square, in pixels.
        fit: letterbox, squash or crop.
        min_photos: products with fewer are left out.
        val_share: of the photos, by which an epoch is chosen and probabilities are calibrated.
        test_share: of the photos, that judge.
        near_duplicates: photos of a product stay in one split if their 64-bit hashes differ in at most so many bits;
            null tells photos apart by their bytes alone.
        brand: the brand whose photos are wanted; null is all of them.
        others: photos of other brands for each photo of the brand, as a class of their own; 0 for none.
        mapping: `index` of the mapping function that is wanted (null is none), how many `functions` there are, and the
            `classes` that each has at least.
        train_on: the split that is trained on; `val` is what calibration learns from. What experts learned from is the
            split `learned` then, which similar products are looked up in.
        augment: strengths of the random changes, see `Augment`.
        labels: what becomes of the labels of train, see `Revision`; null leaves them alone.
        unlabelled: photos beside those of each training batch, see `Mixture`; null for none.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        threads: int,
        on_leak: str,
        on_bad_image: str,
        image_size: int,
        fit: str,
        min_photos: int,
        val_share: float,
        test_share: float,
        near_duplicates: int | None,
        brand: str | None,
        others: float,
        mapping: Mapping[str, int | None],
        train_on: str,
        augment: Mapping[str, float] | None,
        labels: Mapping[str, Any] | None = None,
        unlabelled: Mapping[str, Any] | None = None,
    ) -> None:
        transform = Transform(image_size, fit, 0.0, Augment.of(augment))
        super().__init__(
            root, transform, batch_size, seed, threads, on_leak, on_bad_image, val_share, labels, unlabelled
        )
        if not 0 < test_share < 1 or val_share == 0 or val_share + test_share >= 1:
            raise ValueError(
                f"val_share={val_share!r} and test_share={test_share!r} are not shares above 0 that leave some to "
                "train on"
            )
        if min_photos < 1 or others < 0 or not 0 <= (near_duplicates or 0) <= 64:
            raise ValueError(
                f"min_photos={min_photos}, others={others}, near_duplicates={near_duplicates} must be at least 1, at "
                "least 0, and 0 to 64 bits"
            )
        if train_on not in ("train", "val"):
            raise ValueError(f"train_on={train_on!r} is neither train nor val")
        if unknown := sorted(set(mapping) ^ {"index", "functions", "classes"}):
            raise ValueError(f"mapping has index, functions and classes, not more nor less: {', '.join(unknown)}")
        self.test_share, self.min_photos, self.near_duplicates = test_share, min_photos, near_duplicates
        self.brand, self.others, self.mapping, self.train_on = brand, others, mapping, train_on
        if train_on == "val" and (self.revision != Revision() or self.mixture):
            raise ValueError("train_on=val calibrates on photos as they are labelled: leave out labels and unlabelled")
        if brand is not None or mapping["index"] is not None:
            self._refuse_threshold()

    @classmethod
    def draw_sample(cls, root: Path, seed: int = 0) -> None:
        """Draw shoes of a few brands in this layout into `root`; a set that is there is kept."""
        sample.draw(Path(root), seed)

    def choices(self, argument: str) -> list[str | int]:
        """What the data have for `brand`, or for `mapping.index`: an `each` stage is made for every one of them.

        Raises:
            ValueError: the data make no stages by this argument, or a brand has nothing to learn.
        """
        self._refuse_threshold()
        if argument == "mapping.index":
            return list(range(cast(int, self.mapping["functions"])))
        if argument != "brand":
            raise ValueError(f"each={argument}: the data have stages by brand and by mapping.index")
        self.setup()
        products = np.bincount(np.array(self.facts["brand_of"]))
        brands: list[str | int] = list(self.facts["classes"]["brand"])
        alone = [str(brand) for brand, n in zip(brands, products, strict=True) if n == 1]
        if alone and not self.others:
            raise ValueError(
                f"{names_below(alone)} has one product only, which an expert of its own cannot learn to tell from "
                "anything: set others=1, so that it learns it from other brands' photos, or leave the brand out"
            )
        return brands

    def _refuse_threshold(self) -> None:
        """Verdicts are of products, which the classes of a view are not."""
        if self.revision.threshold is not None:
            raise ValueError(
                f"labels.threshold={self.revision.threshold} judges labels where all products are learned at once, not "
                "by brand or mapping.index: judge them in a stage without these, whose kept.csv all others obey"
            )

    def read(self) -> Splits:
        """The photos as one split, `photos`, which `carve_val` shares out.

        Raises:
            FileNotFoundError: there is no photo.
            ValueError: there is no such brand, or a CSV has something wrong in it.
        """
        found = list_photos(self.root)
        if not found.paths:
            raise FileNotFoundError(self._nothing_here())
        if found.unused:
            self.notes.append(
                f"not used, since they are no photos in a product's folder: {count(found.unused, 'file')}"
            )
        if self.brand is not None and self.brand not in found.brands:
            raise ValueError(f"brand={self.brand!r}: {self.root} has {names_below(sorted(set(found.brands)), 12)}")
        wanted = range(len(found.paths))
        if self.brand is not None and not self.others and self.revision == Revision():
            wanted = [at for at in wanted if found.brands[at] == self.brand]  # type: ignore[assignment]
        return {"photos": self._photos(found, wanted)}

    def _photos(self, found: Listing, wanted: Sequence[int]) -> Photos:
        """All photos of the listing that are wanted, with ids of brand, product and part (-1: not said)."""
        pairs = [(found.brands[at], found.products[at]) for at in wanted]
        kinds = sorted(set(pairs))
        brands = sorted({brand for brand, _ in kinds})
        ids = {pair: at for at, pair in enumerate(kinds)}
        labels = {
            "product": np.array([ids[pair] for pair in pairs], dtype=np.int64),
            "brand": np.array([brands.index(brand) for brand, _ in pairs], dtype=np.int64),
            "part": np.array([PARTS.index(p) if (p := found.part[at]) else -1 for at in wanted], dtype=np.int64),
        }
        self.kinds = kinds
        paths, origin = [found.paths[at] for at in wanted], [found.origin[at] for at in wanted]
        return Photos(paths, None, labels, origin, self.transform, self.on_bad_image == "skip")

    def _nothing_here(self) -> str:
        """The one sentence for a folder without photos of products."""
        inside = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []
        there = f"there is: {', '.join(inside[:8]) or 'nothing'}" if self.root.is_dir() else "there is no such folder"
        return (
            f"No product photos in {self.root.absolute()} ({there}): expected <brand>/<product>/*.jpg, or a CSV with "
            "the columns image, brand, product and, if wanted, split; such photos are a shop's own; set "
            f"data_dir=<folder that holds {self.root.name}/>, or sample=true to go on with drawn shoes"
        )

    def carve_val(self, splits: Splits, keys: Keys) -> Splits:
        """Train, val and test of each brand, every product in train, by the seed and the brand's own photos."""
        photos = self._enough(self._once(splits["photos"], keys))
        products, brands = photos.labels["product"], photos.labels["brand"]
        units = np.arange(len(photos))
        if self.near_duplicates is not None:
            units = near_duplicates(photos.paths, products, self.near_duplicates, self.threads)
        given = photos.labels.pop("part")
        part = np.where(given < 0, 0, given)
        carved = [(2, self.test_share), (1, self.val_share)] if (given < 0).all() else [(1, self.val_share)]
        for brand in np.unique(brands[part == 0]) if len(carved) == 2 or not (part == 1).any() else ():
            here = np.flatnonzero((brands == brand) & (part == 0))
            rng = generator(self.seed, self.kinds[products[here[0]]][0])
            dealt = share_out(products[here], units[here], [share for _, share in carved], rng)
            part[here] = np.array([0, *(number for number, _ in carved)])[dealt]
        return self._in_parts(photos, part)

    def _in_parts(self, photos: Photos, part: NDArray[np.int64]) -> Splits:
        products = photos.labels["product"]
        learned = np.isin(products, products[part == 0])
        unlearned = [f"{photos.origin[at]}: {self.title(products[at])}" for at in np.flatnonzero(~learned)]
        refuse(unlearned, "these products have no photo in train, which each needs: correct the column split")
        unjudged = len(np.setdiff1d(products, products[part == 2]))
        if unjudged:
            self.notes.append(f"test: no photo of {count(unjudged, 'product')}, which have none to spare")
        return {name: photos.keep(np.flatnonzero(part == at)) for at, name in enumerate(PARTS)}

    def title(self, product: int) -> str:
        """A product's full name: brands may have products of the same name."""
        brand, name = self.kinds[product]
        return f"{brand}/{name}"

    def _once(self, photos: Photos, keys: Keys) -> Photos:
        """Each photo once; what to do about one that shows two products, `on_leak` says."""
        groups, products = twins(photos, keys), photos.labels["product"]
        torn = [group for group in groups if len(np.unique(products[group])) > 1]
        gone = {at for group in groups if group not in torn for at in group[1:]}
        if gone:
            self.notes.append(f"copies of photos of the same product left out: {len(gone):,}")
        if torn:
            first = " = ".join(photos.origin[at] for at in torn[0][:2])
            sentence = f"{count(len(torn), 'photo')} shown as more than one product, first {first}"
            self.notes.append(settle_leak(sentence, self.on_leak))
            gone |= {at for group in torn for at in group} if self.on_leak == "drop" else set()
        return photos.keep(at for at in range(len(photos)) if at not in gone)

    def _enough(self, photos: Photos) -> Photos:
        """The photos of products that have enough of them; ids without a gap."""
        products = photos.labels["product"]
        counts = np.bincount(products, minlength=len(self.kinds))
        few = np.flatnonzero((counts > 0) & (counts < self.min_photos))
        if len(few):
            first = self.title(few[0])
            self.notes.append(
                f"left out, fewer than min_photos={self.min_photos}: {count(len(few), 'product')}, first {first}"
            )
        photos = photos.keep(np.flatnonzero(counts[products] >= self.min_photos))
        if not len(photos):
            raise ValueError(f"min_photos={self.min_photos} leaves no product in {self.root}: take a smaller number")
        kept, photos.labels["product"] = np.unique(photos.labels["product"], return_inverse=True)
        self.kinds = [self.kinds[at] for at in kept]
        photos.labels["brand"] = np.unique(photos.labels["brand"], return_inverse=True)[1]
        return photos

    def disjoint(self, splits: Splits, keys: Keys) -> Splits:
        """The splits, disjoint as they were made; from here on it is known what there is."""
        brands = sorted({brand for brand, _ in self.kinds})
        names = {"product": [self.title(at) for at in range(len(self.kinds))], "brand": brands}
        self.facts = {"classes": names, "brand_of": [brands.index(brand) for brand, _ in self.kinds]}
        return splits

    def implied(self) -> Implied:
        """A photo that shows another product shows that one's brand."""
        return {"brand": ("product", self.facts["brand_of"])}

    def view(self, splits: Splits) -> Splits:
        """All photos, or under a mapping of their labels, or those that one brand's expert sees."""
        if self.mapping["index"] is not None:
            splits, self.facts = mapped_view(splits, self.facts, cast(Any, self.mapping), self.seed)
        elif self.brand is not None:
            products = self.facts["classes"]["product"]
            splits, self.facts = expert_view(splits, self.facts, self.brand, self.others, self.seed)
            own = [products.index(title) for title in self.facts["products"]]
            self.dropped = self.dropped and of_products(self.dropped, own)
            self.notes = [f"{note}, of all brands" if note.startswith("labels:") else note for note in self.notes]
        if "brand" not in self.facts["classes"]:
            self.planted = {}  # they are told where all products are learned
        held = sorted(name for part in ("val", "test") for name in splits[part].origin)
        self.facts |= {"trained_on": sorted(splits["train"].origin), "held_out": held}
        learned = {"learned": splits["train"]} if self.train_on == "val" else {}
        return {**splits, "train": splits[self.train_on], **learned}

    def check(self, splits: Splits) -> None:
        """Last look at the splits; a small brand has smaller batches than the others."""
        super().check(splits)
        if self.train_on == "val":  # calibration does not learn products, so it lacks none
            self.notes = [note for note in self.notes if not note.startswith("train: no photo of")]
        if self.brand is not None and len(splits["train"]) < self.batch_size:
            self.notes.append(f"batches of {len(splits['train'])} instead of {self.batch_size}, all photos there are")
            self.batch_size = len(splits["train"])
