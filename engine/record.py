"""What a run left in its folder, read back as plain data.

A run may have failed, or may still be going on, when it is read. So every file may be missing, which leaves an empty
value, or be cut short by a kill, which leaves an empty value and a line in `Run.unreadable`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

Record = dict[str, Any]
T = TypeVar("T", Record, list[Record])

# By these a folder inside a run is known as a stage's, also when config.yaml is lost.
STAGE_FILES = ("metrics.jsonl", "data.json", "parameters.json")
NOT_STAGES = ("environment", "failure")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there; a list reads many


@dataclass
class Stage:
    """One stage: its part of the config, and the files that engine and callbacks wrote, read when asked for."""

    name: str
    folder: Path
    config: Record
    unreadable: list[str]

    @cached_property
    def done(self) -> Record:
        """The done-file; empty until the stage is finished."""
        return read_json(self.folder.with_name(f"{self.folder.name}.json"), {}, self.unreadable)

    @cached_property
    def rows(self) -> list[Record]:
        """The logged metrics, a row for each training step and each validation."""
        return list(read_rows(self.folder / "metrics.jsonl"))

    @cached_property
    def data(self) -> Record:
        """What the data were: root, counts, classes, notes."""
        return read_json(self.folder / "data.json", {}, self.unreadable)

    @cached_property
    def parameters(self) -> list[Record]:
        """The parts of the technique with their trained and frozen parameters."""
        return read_json(self.folder / "parameters.json", [], self.unreadable)

    @cached_property
    def confusion(self) -> Record:
        """Confusion matrices by split and task."""
        return read_json(self.folder / "confusion.json", {}, self.unreadable)

    @cached_property
    def examples(self) -> list[Record]:
        """Pictures with answers, right and wrong ones."""
        return read_json(self.folder / "examples.json", [], self.unreadable)

    @cached_property
    def pictures(self) -> list[Record]:
        """What callbacks want shown: the entries of `pictures/*.json`, the lists in the order of their names."""
        lists = sorted((self.folder / "pictures").glob("*.json"))
        return [entry for path in lists for entry in read_json(path, [], self.unreadable)]

    @cached_property
    def review(self) -> list[Record]:
        """The most suspicious labels, worst first."""
        return read_json(self.folder / "review.json", [], self.unreadable)

    @cached_property
    def margins(self) -> Record:
        """How many labels of each task and class were judged and found suspicious."""
        return read_json(self.folder / "margins.json", {}, self.unreadable)

    @property
    def metrics(self) -> dict[str, float]:
        """The figures of the done-file; none before the stage is finished."""
        return self.done.get("metrics") or {}

    @property
    def started(self) -> bool:
        """Whether it left anything; its folder alone says nothing, for a run locks those of all its stages at once."""
        return bool(self.done or self.rows or self.data or self.parameters)

    def validation(self) -> list[Record]:
        """The rows that hold a validation figure, one an epoch."""
        return [row for row in self.rows if any(key.startswith("val/") for key in row)]


@dataclass
class Run:
    """A run folder, read."""

    folder: Path
    config: Record
    environment: Record
    failure: Record
    stages: list[Stage]
    unreadable: list[str]

    @property
    def experiment(self) -> str:
        """The experiment's name, or the folder's where the run did not get as far as writing one."""
        return str(self.environment.get("experiment") or self.config.get("experiment") or self.folder.name)

    @property
    def asked(self) -> list[Stage]:
        """The stages that this run is to do: all of them, or those of `only`."""
        only = self.config.get("only") or []
        return [stage for stage in self.stages if not only or stage.name.split("/")[0] in only or stage.name in only]

    @property
    def state(self) -> str:
        """`failed`, `finished`, or `unfinished` (which a file cannot tell apart: running, or killed)."""
        if self.failure:
            return "failed"
        return "finished" if self.asked and all(stage.done for stage in self.asked) else "unfinished"

    @property
    def sample(self) -> bool:
        """True where the pictures were drawn by the program."""
        told = self.environment.get("sample") or self.config.get("sample")
        return bool(told) or any(stage.data.get("sample") for stage in self.stages)

    def state_of(self, stage: Stage) -> str:
        """The state of one of the stages, in words."""
        if self.failure.get("stage") == stage.name:
            return "failed"
        if stage.done:
            return "finished"
        if stage not in self.asked:
            return "not asked for"
        return "unfinished" if stage.started else "not started"


def read_run(folder: Path) -> Run:
    """Reads a run folder, whatever state it is in.

    Raises:
        FileNotFoundError: where there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; a run folder is looked for, like outputs/<experiment>/<name>."
        )
    unreadable: list[str] = []
    config = read_config(folder / "config.yaml", unreadable)
    parts = config.get("stages") or {}
    stages = [
        Stage(name, folder / name, parts.get(name) or parts.get(name.split("/")[0]) or {}, unreadable)
        for name in _stage_names(folder, config)
    ]
    environment = read_json(folder / "environment.json", {}, unreadable)
    failure = read_json(folder / "failure.json", {}, unreadable)
    return Run(folder, config, environment, failure, stages, unreadable)


def read_json(path: Path, missing: T, unreadable: list[str]) -> T:
    """The content of a JSON file of the type of `missing`, which stands for a file that is not there or is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return missing
    except (OSError, ValueError) as error:
        unreadable.append(f"{path.name}: {error}")
        return missing
    if isinstance(content, type(missing)):
        return content
    unreadable.append(f"{path.name}: holds a {type(content).__name__}, not a {type(missing).__name__}")
    return missing


def read_config(path: Path, unreadable: list[str]) -> Record:
    """The resolved config as plain data; empty where it is missing or damaged."""
    if not path.is_file():
        return {}
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    except (OSError, ValueError, yaml.YAMLError) as error:
        unreadable.append(f"{path.name}: {error}")
        return {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def read_rows(path: Path) -> Iterator[Record]:
    """The rows of a JSONL file; a row cut short by a kill is left out, for it is the last one and was never whole."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def _stage_names(run: Path, config: Record) -> list[str]:
    """The stages in the order of the config, then those that only left files; `expert` becomes its `expert/<item>`s."""
    marks = {mark.parent for depth in ("*", "*/*") for file in STAGE_FILES for mark in run.glob(f"{depth}/{file}")}
    found = sorted(mark.relative_to(run).as_posix() for mark in marks)
    found += [path.stem for path in sorted(run.glob("*.json")) if path.stem not in NOT_STAGES]
    names: list[str] = []
    for name in config.get("stages") or {}:
        names += [item for item in found if item.startswith(f"{name}/")] or [name]
    return list(dict.fromkeys(names + found))
