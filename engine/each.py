"""Stages that the data make: `each: brand` on a stage becomes one stage for every brand that the data have."""

import re
import unicodedata
from hashlib import sha256
from typing import Any

from engine.compose import Plan, choose
from engine.devices import processes_here
from engine.suggest import nearest

Item = str | int
Items = dict[str, list[Item]]  # by stage


def look_up(plan: Plan) -> Items:
    """What the data of each `each` stage have, in the data's order.

    Raises:
        ValueError: The data make no stages by that argument, or have something in them that stands in the way.
    """
    from engine.stage import build_data, draw_sample

    found: Items = {}
    for name, stage in plan["stages"].items():
        if stage["each"] is None:
            continue
        if plan["sample"]:
            draw_sample(stage["data"])
        data = build_data(_with(stage["data"], stage["each"], None), setup=False)
        if not hasattr(data, "choices"):
            raise ValueError(f"stages.{name}.each={stage['each']}: {type(data).__name__} makes no stages of its own")
        found[name] = data.choices(stage["each"])
    return found


def expand(plan: Plan, items: Items) -> None:
    """Put `<stage>/<item>` for every item in an `each` stage's place, and settle what `only` chooses of them.

    Raises:
        ValueError: Two items come to the same name, or `only` names what is not there.
    """
    stages: dict[str, Any] = {}
    for name, stage in plan["stages"].items():
        if stage["each"] is None:
            stages[name] = stage
            continue
        for item in items[name]:
            key = f"{name}/{slug(item)}"
            if key in stages:
                other = stages[key]["item"]
                raise ValueError(f"{stage['each']} {item!r} and {other!r} would share the folder {key}: rename one")
            data = _with(stage["data"], stage["each"], item)
            stages[key] = stage | {"data": data, "trainer": dict(stage["trainer"]), "item": item}
    plan["stages"] = stages
    choose(plan)


def spread(name: str, stage: dict[str, Any]) -> None:
    """An `each` stage on several devices: as many of its stages at a time, one a device, with nothing between them.

    Raises:
        ValueError: Several nodes are asked for, which cannot share such stages.
    """
    trainer = stage["trainer"]
    if int(trainer.get("num_nodes", 1)) > 1:
        raise ValueError(
            f"stages.{name} makes a stage for each {stage['each']}, which nodes share as jobs of their own: "
            "trainer.num_nodes=1 and -m only=A,B,..."
        )
    devices = trainer["devices"]
    stage["lanes"] = devices if isinstance(devices, list) else list(range(processes_here(trainer)))
    stage["trainer"] = trainer | {"devices": 1, "strategy": "auto"}


def item_seed(seed: int, stage: dict[str, Any]) -> int:
    """A stage's seed: the run's, or one of its own by the item's name, which no other item changes."""
    if stage.get("item") is None:
        return seed
    return int.from_bytes(sha256(f"{seed} {stage['item']}".encode()).digest()[:4])


def slug(item: Item) -> str:
    """A name for files and `only=`: lower case, letters and digits of any script, hyphens between.

    Raises:
        ValueError: There is no letter and no digit in it.
    """
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFC", str(item)).casefold())
    if not words:
        raise ValueError(f"{item!r} has no letter or digit to name a folder after: rename it")
    return "-".join(words)


def _with(data: dict[str, Any], argument: str, item: Item | None) -> dict[str, Any]:
    """The data's config with an argument, `brand` or one inside such as `mapping.index`, set to an item."""
    head, _, rest = argument.partition(".")
    if head not in data or (rest and rest not in (data[head] or {})):
        raise ValueError(f"each={argument}: {data['_target_']} has no such argument{nearest(head, data)}")
    return data | {head: data[head] | {rest: item} if rest else item}
