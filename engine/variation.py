"""What varies between runs: their settings as flat text, the keys that differ, and short names for these."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.record import Run
from engine.suggest import flatten

Settings = dict[str, str]

# Keys that say where a run lies, how it is logged or what it is held against, but not what it is.
ELSEWHERE = (
    "out",
    "out_dir",
    "folder",
    "cluster",
    "logger",
    "theirs",
    "resume",
    "force",
    "check",
    "checkpoint_every",
    "on_sample",
)
# Leaves that say nothing without the node they belong to.
VAGUE = ("name", "_target_", "id")
ABSENT = "–"


def settings_of(run: Run) -> Settings:
    """`settings_in` a run's config."""
    return settings_in({"out": run.folder} | {k: v for k, v in run.config.items() if k != "out" or v})


def settings_in(config: Mapping[str, Any]) -> Settings:
    """The config's leaves as text, without the keys of `ELSEWHERE` and with `${out}` for the run's own folder."""
    out = str(config["out"])
    leaves = {k: v for k, v in flatten(dict(config)).items() if not isinstance(v, dict)}
    return {k: str(v).replace(out, "${out}") for k, v in leaves.items() if k.split(".")[0] not in ELSEWHERE}


def differing(rows: Sequence[Settings]) -> list[str]:
    """The keys that differ, less those that another one stands for.

    Of keys with the same values everywhere (interpolations) the shortest stands for all. Where experiments or variants
    differ, their names stand for every key that they settle.
    """
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = {key: tuple(row.get(key, ABSENT) for row in rows) for key in keys}
    differ = {key: values for key, values in columns.items() if len(set(values)) > 1}
    for name in ("variant", "experiment"):
        if names := differ.pop(name, None):
            differ = {key: v for key, v in differ.items() if len(set(zip(names, v, strict=True))) > len(set(names))}
            differ = {name: names} | differ
    first: dict[tuple[bool, tuple[str, ...]], str] = {}
    for key in sorted(differ, key=lambda key: key.count(".")):
        first.setdefault((is_seed(key), differ[key]), key)
    return [key for key in differ if key in first.values()]


def goes_with_seed(key: str, rows: Sequence[Settings]) -> bool:
    """Whether a key tells runs apart as their seeds do: where each starts from the earlier run of its own seed."""
    if key != "start_from":
        return False
    starts: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        seeds = tuple(value for name, value in row.items() if is_seed(name))
        starts.setdefault(seeds, set()).add(row.get(key, ABSENT))
    return all(len(found) == 1 for found in starts.values())


def is_seed(key: str) -> bool:
    """Whether the key is a seed, over which figures are averaged."""
    return key.rpartition(".")[2] == "seed"


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """For each dotted key its shortest ending that no other one shares."""
    parts = {key: key.split(".") for key in keys}
    names = {}
    for key, own in parts.items():
        length = 2 if own[-1] in VAGUE else 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts.values()) > 1:
            length += 1
        names[key] = ".".join(own[-length:])
    return names
