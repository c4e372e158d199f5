"""Photos with hashtags, many and noisy, beside photos with one label each, few and clean (Kim and Kim)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from datamodules.base import ImageDataModule
from datamodules.samples import sns_tags as sample
from datamodules.splits import Keys, Splits, carve, count, twins
from datamodules.tables import MISSING, Table, read_table, refuse
from datamodules.tags import TaggedPhotos, Tags, word, words
from datamodules.transforms import Augment, Transform

MULTI, SINGLE = "multi.csv", "single.csv"
PHASES = ("multi", "single")
SPLITS = ("train", "test")  # what the column `split` may say
NAMED = 30  # words that a note spells out; the rest is counted
ENDS = 5  # words from either end of the frequency list


class Row(NamedTuple):
    """A photo as a table lists it: file below the root, place in the table, and its words."""

    image: str
    origin: str
    words: list[str]


def _listed(names: Sequence[str], most: int = NAMED) -> str:
    """The first names and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


class SNSTags(ImageDataModule):
    """Photos with hashtags (`multi.csv`: image, tags) and photos with one label (`single.csv`: image, label, split).

    `image` is a path below the root (`images/...`), tags are separated by spaces and may begin with #. The vocabulary
    is every tag of at least `min_count` photos of the whole of multi.csv, by falling frequency: the same words with
    the same ids in both phases and for every seed, so that weights fit from run to run.

    `phase` says which file trains, and validation is a seeded share of the same file: phase multi then never looks at
    a label that trains, and is chosen by tags over the whole vocabulary. Both phases are tested on single.csv's test
    rows. A photo listed twice in multi.csv has the tags of both rows. Labels outside the vocabulary are dropped from
    training and are misses (-1) in the test. `facts` has `words` and `counts`, in the order of the ids.

    Reference: Kim and Kim, selective partial update for image annotation; their photos were not published.

    Args:
        root: folder that holds the CSV files.
        batch_size: of the whole, over all devices.
        seed: of order, augmentation and the validation share.
        threads: that decode.
        on_leak: error, drop or warn about a photo in two splits.
        on_bad_image: error, or skip a broken photo.
        image_size: side of the square, in pixels.
        fit: letterbox, squash or crop.
        phase: `multi` trains on tags, `single` on single labels.
        min_count: photos of multi.csv that a tag needs to be a word.
        val_share: share of what the phase trains on that is set aside for validation.
        augment: strengths of the random changes, see `Augment`; null for none.

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
        phase: str,
        min_count: int,
        val_share: float,
        augment: Mapping[str, float] | None = None,
    ) -> None:
        transform = Transform(image_size, fit, augment=Augment.of(augment))
        super().__init__(root, transform, batch_size, seed, threads, on_leak, on_bad_image, val_share)
        if phase not in PHASES:
            raise ValueError(f"phase={phase!r} is not one of {', '.join(PHASES)}")
        if isinstance(min_count, bool) or not isinstance(min_count, int) or min_count < 1:
            raise ValueError(f"min_count={min_count!r} is not a whole number of at least 1")
        self.phase, self.min_count = phase, min_count
        self.ids: dict[str, int] = {}
        self.shown = np.zeros(1, bool)

    @classmethod
    def draw_sample(cls, root: Path, seed: int = 0) -> None:
        """Draw a small set in this layout, with planted noise, into `root`; one that is there already is kept."""
        sample.draw(Path(root), seed)

    def read(self) -> Splits:
        """The splits as the two tables list them.

        Raises:
            FileNotFoundError: a table is not there.
            ValueError: something wrong in one, or too few words.
        """
        multi, single = self._table(MULTI), self._table(SINGLE)
        posts, labelled = self._posts(multi), self._labelled(single)
        counts = Counter(tag for post in posts for tag in post.words)
        self._choose_words(counts)
        self.shown = np.zeros(len(self.ids) + 1, bool)  # the last for MISSING
        self.shown[[self.ids[row.words[0]] for row in labelled["train"] if row.words[0] in self.ids]] = True
        train = self._tagged(posts) if self.phase == "multi" else self._single("train", labelled["train"], counts)
        test = self._single("test", labelled["test"], counts)
        self._note_unseen(test)
        if self.phase == "single":
            self._note_both(posts, labelled["train"])
        return {"train": train, "test": test}

    def _table(self, name: str) -> Table:
        if (self.root / name).is_file():
            return read_table(self.root / name)
        inside = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []
        there = f"there is: {_listed(inside, 8) or 'nothing'}" if self.root.is_dir() else "there is no such folder"
        raise FileNotFoundError(
            f"No {name} in {self.root.absolute()} ({there}): expected {MULTI} (image,tags) and {SINGLE} "
            "(image,label,split) beside images/; the source's photos were never published, so bring your own in this "
            f"layout; set data_dir=<folder that holds {self.root.name}/>, or sample=true to go on with drawn photos"
        )

    def _posts(self, table: Table) -> list[Row]:
        """The photos of multi.csv, each once, with its tags."""
        posts: dict[str, Row] = {}
        twice = []
        for at, (image, cell) in enumerate(zip(table.column("image"), table.column("tags"), strict=True)):
            row = Row(image.replace("\\", "/"), table.where(at), words(cell))
            earlier = posts.setdefault(row.image, row)
            if earlier is not row:
                twice.append(f"{row.image} ({earlier.origin} = {row.origin})")
                posts[row.image] = earlier._replace(words=list(dict.fromkeys(earlier.words + row.words)))
        if twice:
            self.notes.append(
                f"{MULTI}: {count(len(twice), 'row')} of a photo listed before, tags merged: {_listed(twice)}"
            )
        return list(posts.values())

    def _labelled(self, table: Table) -> dict[str, list[Row]]:
        """The photos of single.csv by split, one word each."""
        found: dict[str, list[Row]] = {split: [] for split in SPLITS}
        faults = []
        for at, (image, label, split) in enumerate(zip(*map(table.column, ("image", "label", "split")), strict=True)):
            row = Row(image.replace("\\", "/"), table.where(at), [word(label)])
            if split not in SPLITS or not row.words[0]:
                faults.append(f"{row.origin}: label {label!r}, split {split!r}")
            else:
                found[split].append(row)
        refuse(faults, f"every row needs a label, and a split that is {' or '.join(SPLITS)}; correct these rows")
        for split in SPLITS if self.phase == "single" else ("test",):
            if not found[split]:
                raise ValueError(f"{table.path} has no row whose split is {split}: phase {self.phase} needs some")
        return found

    def _choose_words(self, counts: Counter[str]) -> None:
        """The vocabulary, by falling frequency."""
        order = sorted(counts, key=lambda tag: (-counts[tag], tag))
        kept = [tag for tag in order if counts[tag] >= self.min_count]
        if len(kept) < 2:
            most = f"the most frequent are {_counted(order[:ENDS], counts)}" if order else "it lists no tag at all"
            raise ValueError(
                f"{self.root / MULTI} has {count(len(kept), 'tag')} with at least min_count={self.min_count} photos, "
                f"where a vocabulary needs two ({most}): lower min_count, or add photos"
            )
        self.ids = {tag: at for at, tag in enumerate(kept)}
        self.facts = {"words": kept, "counts": [counts[tag] for tag in kept]}
        rare = order[len(kept) :]
        self.notes.append(
            f"vocabulary: {count(len(kept), 'tag')} with at least {count(self.min_count, 'photo')} in {MULTI}, from "
            f"{_counted(kept[:ENDS], counts)} to {_counted(kept[-ENDS:], counts)}; {count(len(rare), 'rarer tag')} "
            f"dropped ({count(sum(counts[tag] for tag in rare), 'use')})"
        )
        stuck = [tag for tag in order if "#" in tag]
        if stuck:
            what = "with a # inside, kept as one tag each for want of a space"
            self.notes.append(f"{MULTI}: {count(len(stuck), 'tag')} {what}: {_listed(stuck)}")

    def _photos(self, rows: Sequence[Row], ids: Sequence[Sequence[int]]) -> TaggedPhotos:
        paths, origin = [self.root / row.image for row in rows], [row.origin for row in rows]
        return TaggedPhotos(paths, origin, Tags.of(ids), self.transform, self.on_bad_image == "skip")

    def _tagged(self, posts: Sequence[Row]) -> TaggedPhotos:
        """The photos of multi.csv that have a word of the vocabulary."""
        ids = [[self.ids[tag] for tag in post.words if tag in self.ids] for post in posts]
        for what, some in {"no tag at all": False, "tags below min_count only": True}.items():
            gone = [post.origin for post, own in zip(posts, ids, strict=True) if not own and bool(post.words) == some]
            if gone:
                self.notes.append(f"{MULTI}: {count(len(gone), 'photo')} with {what} dropped, first {gone[0]}")
        photos = self._photos([post for post, own in zip(posts, ids, strict=True) if own], [own for own in ids if own])
        sizes = photos.tags.sizes
        self.notes.append(
            f"{MULTI}: {count(len(sizes), 'photo')} with {sizes.min()} to {sizes.max()} tags of the vocabulary, "
            f"{sizes.mean():.1f} on average"
        )
        return photos

    def _single(self, split: str, rows: Sequence[Row], counts: Counter[str]) -> TaggedPhotos:
        """The photos of one split of single.csv; what is outside the vocabulary cannot be trained, but is tested."""
        outside = Counter(row.words[0] for row in rows if row.words[0] not in self.ids)
        if outside:
            named = _listed([f"{tag} ({n:,} here, {counts[tag]:,} in {MULTI})" for tag, n in outside.most_common()])
            done = "dropped" if split == "train" else "counted as misses"
            what = f"{count(len(outside), 'label')} outside the vocabulary ({count(outside.total(), 'photo')})"
            if outside.total() == len(rows):
                raise ValueError(
                    f"{self.root / SINGLE}: {split} has {what} and no other ({named}): lower "
                    f"min_count={self.min_count}, or label with words of {MULTI}"
                )
            self.notes.append(f"{split}: {what} {done}: {named}")
        known = [row for row in rows if split == "test" or row.words[0] in self.ids]
        photos = self._photos(known, [[self.ids.get(row.words[0], MISSING)] for row in known])
        photos.shown = self.shown if split == "test" else None
        return photos

    def _note_unseen(self, test: TaggedPhotos) -> None:
        known = test.tags.ids[test.tags.ids != MISSING]
        unseen, labels = known[~self.shown[known]], len(np.unique(known))
        self.notes.append(
            f"test: {len(np.unique(unseen)):,} of {count(labels, 'label')} never in {SINGLE}'s train rows "
            f"({len(unseen):,} of {count(len(known), 'photo')})"
        )

    def _note_both(self, posts: Iterable[Row], train: Iterable[Row]) -> None:
        """A photo that an earlier phase has seen with its tags makes validation easier, though not the test."""
        both = {post.image for post in posts} & {row.image for row in train}
        if both:
            self.notes.append(
                f"{SINGLE}: {count(len(both), 'train photo')} also in {MULTI}, so val flatters a model that saw both"
            )

    def carve_val(self, splits: Splits, keys: Keys) -> Splits:
        """Validation from what the phase trains on: at random among tagged photos, each label among single ones."""
        train = cast(TaggedPhotos, splits["train"])
        labels = {} if self.phase == "multi" else {"label": np.unique(train.tags.ids, return_inverse=True)[1]}
        kept, held = carve(labels, [keys[path] for path in train.paths], self.val_share, self.seed)
        val = train.keep(held)
        val.shown = self.shown if self.phase == "single" else None
        source = MULTI if self.phase == "multi" else f"{SINGLE}'s train rows"
        self.notes.append(f"val: {count(len(held), 'photo')} of {source} set aside (seed {self.seed})")
        return {"train": train.keep(kept), "val": val, "test": splits["test"]}

    def disjoint(self, splits: Splits, keys: Keys) -> Splits:
        """The splits after `on_leak`; also names equal photos whose single labels contradict each other."""
        for name in splits if self.phase == "single" else ("test",):
            photos = cast(TaggedPhotos, splits[name])
            torn = [group for group in twins(photos, keys) if len(np.unique(photos.tags.ids[group])) > 1]
            if torn:
                pair = " = ".join(photos.origin[at] for at in torn[0][:2])
                self.notes.append(f"{name}: {count(len(torn), 'duplicate')} with different labels, first {pair}")
        return super().disjoint(splits, keys)

    def check(self, splits: Splits) -> None:
        """Last look at the splits; also names words that nothing teaches."""
        super().check(splits)
        if self.phase == "multi":
            seen = np.bincount(cast(TaggedPhotos, splits["train"]).tags.ids, minlength=len(self.ids))
            idle = [self.facts["words"][at] for at in np.flatnonzero(seen == 0)]
            if idle:
                self.notes.append(
                    f"train: {count(len(idle), 'word')} on no photo left to train on, so never learned: {_listed(idle)}"
                )


def _counted(tags: Sequence[str], counts: Mapping[str, int]) -> str:
    return ", ".join(f"{tag} ({counts[tag]:,})" for tag in tags)
