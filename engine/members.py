"""Which finished stages another one is made of: where they lie, and whether they are all that the data have by now."""

from collections.abc import Mapping
from glob import glob
from pathlib import Path
from typing import Any

from engine.each import slug


def members(where: Any) -> list[Path]:
    """The checkpoints that a place, or a list of places, means: stages' files, or all in a folder; globs of either.

    A folder is one that an `each` stage left: `<run>/expert`, or of a multirun with `only=A,B,...` `<sweep>/*/expert`.

    Raises:
        ValueError: There is none.
    """
    found: list[Path] = []
    for pattern in [where] if isinstance(where, str) else where:
        places = [Path(place) for place in sorted(glob(pattern))]
        here = [place for place in places if place.is_file()]
        # `last.ckpt` and their like are no stages' results: those have a done-file beside them.
        files = (path for place in places if place.is_dir() for path in sorted(place.glob("*.ckpt")))
        here += [path for path in files if path.with_suffix(".json").is_file()]
        if not here:
            raise ValueError(f"joins: no stage has finished in {pattern}: run those that are to be joined first")
        found += here
    return found


def refuse_gaps(name: str, stages: Mapping[str, Any]) -> None:
    """Refuse to join what an `each` stage left where by now the data have more than that.

    Args:
        name: Of the stage that joins.
        stages: All of the plan, with those that the data make.

    Raises:
        ValueError: Something that the data have is not among the members.
    """
    for argument, where in stages[name]["joins"].items():
        found = members(where) if where else []
        there = {(path.parent.name, path.stem) for path in found}
        for made in sorted({kind for kind, _ in there}):
            items = [stage["item"] for key, stage in stages.items() if key.startswith(f"{made}/")]
            if missing := [item for item in items if (made, slug(item)) not in there]:
                more, dots = (f" and {len(missing) - 3} more", ",...") if missing[3:] else ("", "")
                wanted = ",".join(map(slug, missing[:3])) + dots
                raise ValueError(
                    f"stages.{name}.joins.{argument}: the data have {', '.join(map(str, missing[:3]))}{more}, of which "
                    f"{where} has no {made}: train what is missing (only=[{wanted}]), or leave only= out"
                )


def outside(joins: Mapping[str, Any], out: Path) -> list[Path]:
    """The done-files of members that lie elsewhere than in the run at `out`; they change when one is made anew."""
    found = [path for where in joins.values() if where for path in members(where)]
    return [path.with_suffix(".json") for path in found if not path.is_relative_to(out)]
