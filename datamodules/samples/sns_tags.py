"""Draws a small SNS-tags set: scenes whose hashtags go together as what they show goes together.

`multi.csv` has noisy tags: some that fit are missing, some have nothing to do with the picture, many occur once or
twice, Korean ones are now and then in the decomposed spelling of some phones. `single.csv` has one clean label each;
about 30 % of the labels in its test rows never occur in its train rows. `planted.csv` tells for each picture all tags
that fit, and which of those in multi.csv do not.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from datamodules.samples.folder import write_rows, write_whole
from datamodules.samples.scenes import PLACES, SKIES, picture
from datamodules.samples.things import THINGS

MULTI, TRAIN, TEST = 900, 200, 300  # pictures
UNSEEN = 0.3  # share of the test labels that train does not have
DECOMPOSED = 0.1  # share of Korean tags that are spelt so
TAIL = 700  # rare words that there are
TIMES = dict(zip(SKIES, (0.36, 0.18, 0.18, 0.14, 0.14), strict=True))

# What people write below a picture of something, with the chance in percent that they do.
WORDS = {
    "sea": "sea 80 바다 50 beach 55 ocean 40 summer 40 travel 35 wave 20 🌊 15",
    "mountain": "mountain 80 산 40 hiking 45 nature 50 travel 30 등산 25",
    "city": "city 80 도시 30 building 50 seoul 40 서울 25 urban 30 travel 15",
    "street": "street 80 거리 30 walk 40 road 40 urban 25 산책 15",
    "forest": "forest 80 숲 40 tree 55 nature 55 green 35 hiking 20",
    "park": "park 80 공원 40 picnic 40 grass 35 green 30 walk 25 산책 20",
    "room": "room 80 방 30 home 60 interior 45 집 30 cozy 30",
    "desert": "desert 80 사막 25 sand 50 travel 40 dry 20 adventure 25",
    "sunny": "sunny 25 sky 20 맑음 10",
    "sunset": "sunset 75 노을 45 sky 40 evening 35 golden 15",
    "night": "night 75 밤 45 dark 25 lights 35 야경 25",
    "snow": "snow 75 눈 45 winter 60 cold 35 겨울 30 ❄️ 15",
    "rain": "rain 75 비 45 rainy 35 wet 20 ☔ 15",
    "cat": "cat 85 고양이 60 catstagram 40 kitty 30 pet 40 cute 35 🐱 20",
    "dog": "dog 85 강아지 60 puppy 40 pet 45 cute 35 dogstagram 30 🐶 20",
    "bird": "bird 85 새 35 wings 35 nature 25 fly 35",
    "fish": "fish 85 물고기 35 aquarium 35 swim 30",
    "coffee": "coffee 85 커피 55 cafe 55 latte 35 morning 30 카페 35 ☕ 20",
    "cake": "cake 85 케이크 45 dessert 50 birthday 45 sweet 40 생일 25 🎂 15",
    "pizza": "pizza 85 피자 45 food 50 dinner 35 yummy 35 먹스타그램 25",
    "apple": "apple 85 사과 45 fruit 50 food 25 healthy 30",
    "flower": "flower 85 꽃 55 bloom 40 spring 40 garden 30 🌸 15",
    "bicycle": "bicycle 85 자전거 45 bike 55 ride 45 cycling 35",
    "car": "car 85 자동차 40 drive 50 ride 20 wheels 30 드라이브 25",
    "boat": "boat 85 배 35 sailing 50 yacht 30 sail 30",
    "balloon": "balloon 85 풍선 40 party 45 birthday 25 fly 15 🎈 20",
    "umbrella": "umbrella 85 우산 45 rainy 20 fashion 20",
    "book": "book 85 책 50 reading 55 독서 35 study 30",
    "red": "red 35 빨강 10", "orange": "orange 30", "yellow": "yellow 35 노랑 10", "green": "green 35",
    "blue": "blue 35 파랑 10", "purple": "purple 35", "pink": "pink 35", "white": "white 25", "black": "black 30",
    "brown": "brown 25",
}  # fmt: skip
HOMES = {  # where things mostly are
    "cat": "room park street", "dog": "park street sea", "bird": "forest park sea", "fish": "sea",
    "coffee": "room city", "cake": "room park", "pizza": "room city street", "apple": "room park forest",
    "flower": "park mountain desert", "bicycle": "street park city", "car": "street city desert", "boat": "sea",
    "balloon": "park sea city",
    "umbrella": "street city sea", "book": "room park forest",
}  # fmt: skip
AT_HOME = 0.6  # share of things that are there
ANYWHERE = ("instagood", "love", "일상", "photooftheday", "follow", "happy", "daily", "소통", "f4f", "ootd")
SYLLABLES = ("ka", "mi", "ro", "su", "ne", "to", "ji", "ha", "yu", "lo", "서", "민", "하", "지")


class Shot(NamedTuple):
    """What a picture shows: a place, a time, and things with their colours, the main one first."""

    place: str
    time: str
    things: list[tuple[str, str]]

    @property
    def concepts(self) -> list[str]:
        """Everything in it that has words."""
        return [self.place, self.time, *dict.fromkeys(name for thing in self.things for name in thing)]


def chances(concepts: Sequence[str]) -> dict[str, float]:
    """The words for these concepts, each with the chance that somebody writes it (the largest, if several have it)."""
    found: dict[str, float] = {}
    for concept in concepts:
        cells = WORDS[concept].split()
        for tag, percent in zip(cells[::2], cells[1::2], strict=True):
            found[tag] = max(found.get(tag, 0), int(percent) / 100)
    return found


def shot(rng: Generator, things: int, main: str | None = None) -> Shot:
    """A random picture with so many things in it.

    Args:
        rng: source of randomness.
        things: 0 to 2.
        main: a place, or the thing that is drawn large.
    """
    names = rng.choice([name for name in THINGS if name != main], 2, replace=False).tolist()
    names = [main, *names] if main in THINGS else names
    usual = HOMES[names[0]].split() if things and rng.random() < AT_HOME else list(PLACES)
    place = main if main in PLACES else str(rng.choice(usual))
    shown = [(name, str(rng.choice(THINGS[name][1]))) for name in names[:things]]
    return Shot(place, str(rng.choice(list(TIMES), p=list(TIMES.values()))), shown)


def rare_words(rng: Generator) -> list[str]:
    """Names, handles and typing errors, as the tail of every tag list has them."""
    sizes = rng.integers(2, 5, TAIL)
    return [
        "".join(rng.choice(SYLLABLES, size)) + (f"_{rng.integers(100)}" if rng.random() < 0.3 else "") for size in sizes
    ]


def hashtags(fitting: dict[str, float], rare: Sequence[str], rng: Generator) -> tuple[list[str], list[str]]:
    """What is written below a picture, in random order, and which of it has nothing to do with it.

    Args:
        fitting: words for what is shown, with their chances.
        rare: words of the long tail, the more frequent first.
        rng: source of randomness.
    """
    fits = [tag for tag, chance in fitting.items() if rng.random() < chance]
    noise = [tag for tag in ANYWHERE if rng.random() < 0.15]
    if rng.random() < 0.35:  # a word of something that is not there
        noise += [WORDS[str(rng.choice(list(WORDS)))].split()[0] for _ in range(rng.integers(1, 3))]
    tail = (len(rare) * rng.random(rng.poisson(0.9)) ** 1.7).astype(int)
    noise = [tag for tag in dict.fromkeys([*noise, *(rare[at] for at in tail)]) if tag not in fitting]
    return rng.permutation([*fits, *noise]).tolist(), noise


def spelt(tag: str, rng: Generator) -> str:
    """The tag as somebody's phone writes it."""
    return "#" + (unicodedata.normalize("NFD", tag) if rng.random() < DECOMPOSED else tag)


def labels(rng: Generator) -> list[tuple[str, str]]:
    """Label and split of each single-label picture."""
    names = rng.permutation([*PLACES, *THINGS]).tolist()
    known = names[round(UNSEEN * len(names)) :]
    train, test = np.resize(known, TRAIN).tolist(), np.resize(names, TEST).tolist()
    rows = [(name, split) for split, some in (("train", train), ("test", test)) for name in some]
    return [rows[at] for at in rng.permutation(len(rows))]


def write(root: Path, seed: int) -> None:
    """Pictures and tables of the whole set."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir()
    rare, single = rare_words(rng), labels(rng)
    shots = [shot(rng, int(rng.choice(3, p=(0.2, 0.55, 0.25)))) for _ in range(MULTI)]
    shots += [shot(rng, int(rng.choice(2, p=(0.8, 0.2))) + (name in THINGS), name) for name, _ in single]
    files = [f"images/{at:05d}.jpg" for at in range(len(shots))]
    for at, (file, what) in enumerate(zip(files, shots, strict=True)):
        picture(*what, np.random.default_rng((seed, at))).save(root / file, quality=90)
    posts, planted = [], []
    for at, (file, what) in enumerate(zip(files, shots, strict=True)):
        fitting = chances(what.concepts)
        written, noise = hashtags(fitting, rare, rng) if at < MULTI else ([], [])
        planted.append((file, " ".join(fitting), " ".join(noise)))
        if at < MULTI:
            posts.append((file, " ".join(spelt(tag, rng) for tag in written)))
    write_rows(root / "multi.csv", ("image", "tags"), posts)
    rows = [(file, *row) for file, row in zip(files[MULTI:], single, strict=True)]
    write_rows(root / "single.csv", ("image", "label", "split"), rows)
    write_rows(root / "planted.csv", ("image", "fitting", "noise"), planted)


def draw(root: Path, seed: int = 0) -> None:
    """Draw the set into `root`: complete or not at all, and left alone if it is there.

    Args:
        root: folder to make.
        seed: of everything.
    """
    write_whole(root, "multi.csv", lambda folder: write(folder, seed))
