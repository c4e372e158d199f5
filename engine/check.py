"""Refuses a plan whose `_target_`s, arguments or types are wrong, before anything is built."""

import inspect
import typing
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from beartype import BeartypeConf
from beartype.door import is_bearable

from engine.devices import world_size
from engine.suggest import nearest

_INT_IS_FLOAT = BeartypeConf(is_pep484_tower=True)


def check_targets(node: Any, where: str, filled: bool = False) -> None:
    """Hold every `_target_` node below `node` against the signature of what it names.

    Args:
        node: A plain, resolved part of a plan.
        where: Its dotted place, for the message.
        filled: Whether the data have already filled in what only they know; before that a `null` may stand anywhere.

    Raises:
        ValueError: A target that cannot be imported, an argument that it does not take, one that is missing, or a
            value of another type; the message names the place and the nearest right names.
    """
    for place, target in _targets(node, where):
        found = _locate(target["_target_"], place)
        _check_call(found, target, place, filled)


def check_stage(name: str, stage: dict[str, Any]) -> None:
    """Refuse parts of a stage that do not go together, which it would find out after the stages before it.

    Raises:
        ValueError: A batch that the processes cannot share, or consistency without unlabelled photos.
    """
    batch, world = stage["data"].get("batch_size"), world_size(stage["trainer"])
    if isinstance(batch, int) and batch % world:
        raise ValueError(
            f"stages.{name}.data.batch_size={batch} is the batch of all processes together and cannot be shared by "
            f"{world}; take a multiple of {world}"
        )
    if stage["module"].get("uda") and not stage["data"].get("unlabelled"):
        raise ValueError(
            f"stages.{name}.module.uda learns from unlabelled photos and the data bring none: set "
            f"stages.{name}.data.unlabelled, such as {{source: train, ratio: 1}}, or stages.{name}.module.uda=null"
        )


def _targets(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield where, node
        for key, value in node.items():
            yield from _targets(value, f"{where}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _targets(value, f"{where}[{i}]")


def _locate(path: Any, where: str) -> Callable[..., Any]:
    module_name, _, name = str(path).rpartition(".")
    try:
        module = import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{where}._target_: cannot import {path!r} ({error})") from error
    if not hasattr(module, name):
        raise ValueError(f"{where}._target_: {module_name} has no {name!r}{nearest(name, dir(module))}")
    found: Callable[..., Any] = getattr(module, name)
    return found


def _check_call(found: Callable[..., Any], node: dict[str, Any], where: str, filled: bool) -> None:
    parameters = inspect.signature(found).parameters
    named = getattr(found, "__name__", str(found))
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in given:
        if key not in parameters and not open_ended:
            raise ValueError(f"{where}.{key}: {named} has no parameter {key!r}{nearest(key, parameters)}")
    for key, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if required and key not in given and not node.get("_partial_"):
            raise ValueError(f"{where}: {named} needs {key!r}, which is not set")
    _check_types(found, given, where, named, filled)


def _check_types(found: Callable[..., Any], given: dict[str, Any], where: str, named: str, filled: bool) -> None:
    body = found.__init__ if inspect.isclass(found) else found
    try:
        hints = typing.get_type_hints(inspect.unwrap(body))
    except (NameError, TypeError):  # names that exist only for a type checker: nothing to hold the value against
        return
    for key, value in given.items():
        built_later = isinstance(value, (dict, list)) and any(_targets(value, ""))
        if key not in hints or built_later or (value is None and not filled):
            continue
        if not is_bearable(value, hints[key], conf=_INT_IS_FLOAT):
            wanted = getattr(hints[key], "__name__", None)
            wanted = str(hints[key]).replace("typing.", "") if wanted in (None, "Optional", "Union") else wanted
            raise ValueError(f"{where}.{key}: {named} wants {wanted}, got {value!r}")
