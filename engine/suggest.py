"""Turns an error into one sentence for the person at the keyboard, with the nearest right names."""

import errno
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.overrides import replacing

CONF = Path(__file__).resolve().parent.parent / "conf"


def nearest(name: str, names: Iterable[str], n: int = 3) -> str:
    """The `n` names most like `name`, as the end of a sentence: `; did you mean 'a' or 'b'?`, or nothing."""
    names = list(names)
    tails = {full.rsplit(".", 1)[-1]: full for full in names}
    close = get_close_matches(name, names, n, 0.6) or [
        tails[tail] for tail in get_close_matches(name.rsplit(".", 1)[-1], tails, n, 0.75)
    ]
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def files_named(names: Sequence[str], folder: Path, kind: str) -> list[Path]:
    """The YAML files of these names, or all that a folder has.

    Raises:
        ValueError: There is none of a name.
    """
    known = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    for name in names:
        if name not in known:
            raise ValueError(f"no {kind} is called {name!r}{nearest(name, known)} (there are {', '.join(known)})")
    return [known[name] for name in names or known]


def explain(error: BaseException, overrides: Sequence[str] = ()) -> str:
    """One sentence for an error of Hydra, OmegaConf or our own; other errors keep their type's name."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_option(error)
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, (ValueError, OSError)):
        return explain(error.__cause__)  # what the target itself says of its arguments
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _composition(error, overrides)
    text = str(error).strip()
    if "PytorchStreamWriter failed" in text or getattr(error, "errno", None) == errno.ENOSPC:
        return (
            f"a file could not be written, the disk is probably full; earlier files are kept ({text.splitlines()[0]})"
        )
    if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", text):
        return (
            f"memory does not suffice ({text.splitlines()[0] if text else type(error).__name__}): take a smaller "
            "batch_size or image_size in the stage's data, or trainer.precision=bf16-mixed"
        )
    spoken = isinstance(error, (ValueError, OSError, FloatingPointError)) and text
    return text if spoken else f"{type(error).__name__}: {text}"


def said_by_resolver(error: Exception) -> str:
    """The sentence of a ValueError that one of our `${...:}` raised; OmegaConf wraps it. Empty for other errors."""
    found = re.match("ValueError raised while resolving interpolation: (.+)", str(error))
    return found[1] if found else ""


def _missing_option(error: MissingConfigException) -> str:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    options = sorted(error.options or [])
    known = f"{group} has {', '.join(options)}" if options else f"there is no group {group!r}"
    if group == "hydra/launcher":
        known += "; others come with pip install 'nunchi[sweeps]'"
    return f"no {group} is called {name!r}{nearest(name, options)} ({known})"


def _composition(error: Exception, overrides: Sequence[str]) -> str:
    if said := said_by_resolver(error):
        return said
    text = " ".join(str(part) for part in (error, error.__cause__) if part)
    if found := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{found[1]!r} lists several values: with -m there is a run of each, and [a,b] is a list"
    if found := re.search(r"Error parsing override '([^']+)'\nmissing EQUAL", text):
        names = [path.stem for path in (CONF / "experiment").glob("*.yaml")]
        return f"{found[1]!r} is no key=value{nearest(found[1], [f'experiment={name}' for name in names])}"
    if found := re.search(r"Could not override '([^']+)'", text):
        known = _keys(found[1], overrides)
        if found[1] in known:
            inner = re.search(r"Key '([^']+)'", text)
            place = f"{found[1]}.{inner[1] if inner else ''}"
            return f"there is no key {place!r}{nearest(place, known)}"
        return f"there is no key {found[1]!r}{nearest(found[1], known)}"
    if found := re.search(r"Key '([^']+)' (?:is )?not in (?:struct|'(\w+)')", text):
        where = re.search(r"In '([^']+)'", text)
        place = f"conf/{where[1]}.yaml" if where else "the config"
        return f"{place} has a key {found[1]!r} that nothing reads{nearest(found[1], _keys(found[1], ()))}"
    if found := re.search(r"(Value .+? could not be converted to \w+)", text):
        return f"{str(error).strip().splitlines()[0].removeprefix('Error merging override ')}: {found[1]}"
    return " ".join(line.strip() for line in text.splitlines()[:3] if "object_type" not in line)


def _keys(wrong: str, overrides: Sequence[str]) -> list[str]:
    """All dotted keys and groups that are there without the override that names `wrong`."""
    kept = [o for o in overrides if o.lstrip("+~").split("=")[0].split("@")[0] != wrong]
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    for tried in (kept, []):
        try:
            return groups + list(flatten(OmegaConf.to_container(composed(tried))))
        except (HydraException, OmegaConfBaseException):
            continue
    return groups


def composed(overrides: Sequence[str]) -> Any:
    """The config for these overrides, composed apart from the Hydra application that may be running."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("run", overrides=replacing(overrides))


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a": {...}, "a.b": 1}`: every dotted key, inner nodes included."""
    flat: dict[str, Any] = {}
    for key, value in node.items() if isinstance(node, dict) else ():
        flat[f"{prefix}{key}"] = value
        flat |= flatten(value, f"{prefix}{key}.")
    return flat
