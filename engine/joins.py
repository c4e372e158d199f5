"""What a stage is made of: finished stages, whose networks and facts become arguments of its module (`joins:`)."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.checkpoints import add_tensors, read_checkpoint
from engine.members import members

State = dict[str, Tensor]
TRUNK = "encoder."


class Joined:
    """Finished stages, read once: `facts` fill the module's arguments, `states` are the weights that it takes over.

    Stages whose trunks are equal bit for bit, as those are that started from one and froze it, share one.

    Args:
        joins: Of the stage: for each argument of the module the places of its members.

    Attributes:
        facts: For each argument a list of `{"name", "facts", "trunk"}`; and `trunks`, a list of `{"encoder", "side"}`.
        states: For each argument the members' weights, in the same order; and `trunks`, likewise.
    """

    def __init__(self, joins: Mapping[str, Any]) -> None:
        self.facts: dict[str, list[dict[str, Any]]] = {"trunks": []} if joins else {}
        self.states: dict[str, list[State]] = {"trunks": []} if joins else {}
        self._known: dict[str, int] = {}
        for argument, where in joins.items():
            self.facts[argument], self.states[argument] = [], []
            for path in members(where) if where else []:
                self._add(argument, path)

    def _add(self, argument: str, path: Path) -> None:
        content = read_checkpoint(path)
        stage, state = content["stage"], content["state_dict"]
        trunk = {key.removeprefix(TRUNK): state.pop(key) for key in [key for key in state if key.startswith(TRUNK)]}
        if not trunk:
            raise ValueError(f"joins.{argument}: {path} holds no encoder, which a stage that is joined needs")
        node = {"encoder": stage["module"]["encoder"] | {"weights": "none"}, "side": stage["data"]["image_size"]}
        key = _digest(node, trunk)
        if key not in self._known:
            self._known[key] = len(self._known)
            self.facts["trunks"].append(node)
            self.states["trunks"].append(trunk)
        self.facts[argument].append({"name": path.stem, "facts": content["facts"], "trunk": self._known[key]})
        self.states[argument].append(state)


def _digest(node: Mapping[str, Any], tensors: State) -> str:
    digest = hashlib.sha256(json.dumps(node, sort_keys=True).encode())
    add_tensors(digest, dict(sorted(tensors.items())))
    return digest.hexdigest()
