"""A run's folder: its name, its record, what was finished in it, and whether a new command may go on with it."""

import hashlib
import json
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from engine.compose import Plan
from engine.suggest import flatten, nearest

# A change of these changes how a run is made or how long it lasts, not what it means.
SAFE = (
    "logger", "theirs", "out", "out_dir", "folder", "cluster", "only", "start_from", "resume", "force", "check",
    "checkpoint_every",
    "trainer",  # laid over each stage's own, which is looked at key by key
    *(f"stages.*.trainer.{key}" for key in (
        "accelerator", "devices", "num_nodes", "strategy", "max_epochs", "max_steps", "max_time", "log_every_n_steps",
        "profiler", "limit_test_batches",
    )),
    "stages.*.lanes",
    *(f"stages.*.data.{key}" for key in ("threads", "download")),
)  # fmt: skip
VERSIONS = ("torch", "torchvision", "lightning", "hydra-core", "timm", "torchmetrics", "wandb", "numpy", "pillow")


def new_folder(out_dir: str, experiment: str) -> Path:
    """A folder below `<out_dir>/<experiment>` that no other run has or will get."""
    while True:
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        folder = Path(out_dir) / experiment / f"{stamp}-{secrets.token_hex(2)}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder


def find_folder(name: str, out_dir: str, experiment: str, key: str = "resume") -> Path:
    """The run folder that `resume=` or `start_from=` means.

    Raises:
        ValueError: There is none.
    """
    home = Path(out_dir) / experiment
    runs = sorted((p.parent for p in home.glob("*/config.yaml")), key=lambda p: p.name) if home.is_dir() else []
    if name == "latest":
        if not runs:
            raise ValueError(f"{key}=latest: there is no run in {home} yet; run the command without {key} first")
        return runs[-1]
    folder = Path(name)
    if not (folder / "config.yaml").is_file():
        known = nearest(str(folder), map(str, runs))
        raise ValueError(f"{key}={name}: no run lies there (a run's folder holds a config.yaml){known}")
    return folder


def read_plan(folder: Path) -> Plan:
    """The resolved config that a run was started with."""
    plan: Plan = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return plan


def write_plan(folder: Path, plan: Plan) -> None:
    """Record the resolved config; an earlier one that differs stays beside it as `config.1.yaml`, and so on."""
    text = yaml.safe_dump(plan, sort_keys=False, allow_unicode=True)
    target = folder / "config.yaml"
    if target.is_file() and target.read_text(encoding="utf-8") != text:
        count = len(list(folder.glob("config.*.yaml")))
        target.rename(folder / f"config.{count + 1}.yaml")
    write_text(target, text)


def write_text(path: Path, text: str) -> None:
    """Write aside, then rename: a reader sees the old file or the new one, never half of one."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def write_json(path: Path, content: Any) -> None:
    """`write_text` for JSON."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def changes(old: Plan, new: Plan) -> list[tuple[str, Any, Any, bool]]:
    """Every key whose value differs, as (key, old, new, whether the change is safe)."""
    before, after = (
        {k: v for k, v in flatten(plan).items() if not isinstance(v, dict) or not v} for plan in (old, new)
    )
    relative = (str(old.get("out")), str(new.get("out")))
    rows: list[tuple[str, Any, Any, bool]] = []
    keys = before.keys() | after.keys()
    for name in _items(old) ^ _items(new):  # what the data gained or lost changes no other stage
        keys = {key for key in keys if not key.startswith(f"stages.{name}.")}
        rows.append((f"stages.{name}", *(("there", None) if name in old["stages"] else (None, "there")), True))
    for key in sorted(keys):
        was, now = before.get(key), after.get(key)
        if str(was).replace(relative[0], "") != str(now).replace(relative[1], ""):
            rows.append((key, was, now, is_safe(key)))
    return rows


def _items(plan: Plan) -> set[str]:
    """The stages that the data made."""
    return {name for name, stage in plan.get("stages", {}).items() if stage.get("item") is not None}


def is_safe(key: str) -> bool:
    """Whether a change of this dotted key leaves the meaning of the run as it was."""
    parts = key.split(".")
    for pattern in SAFE:
        wanted = pattern.split(".")
        if len(wanted) <= len(parts) and all(w in ("*", p) for w, p in zip(wanted, parts, strict=False)):
            return True
    return False


def stage_key(stage: dict[str, Any], name: str, seed: int, out: Path, others: Sequence[Path] = ()) -> str:
    """A digest of what a stage's result depends on: its config but for the safe keys, and the files it reads.

    Args:
        stage: Its config; what it names below `out` is read.
        name: Of the stage.
        seed: Of the run.
        out: The run's folder.
        others: Files outside of it.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode())
    for key, value in sorted(flatten(stage).items()):
        if isinstance(value, dict) or is_safe(f"stages.{name}.{key}"):
            continue
        digest.update(f"{key}={str(value).replace(str(out), '')}\n".encode())
        for path in _inputs(value, out):
            _add_file(digest, path)
    for path in others:
        _add_file(digest, path)
    return digest.hexdigest()


def _add_file(digest: Any, path: Path) -> None:
    with open(path, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())


def _inputs(value: Any, out: Path) -> list[Path]:
    """The run's files that a value names; of a folder of stages the done-files, which change when one is redone."""
    if not isinstance(value, str) or not value.startswith(f"{out}/"):
        return []
    return sorted(Path(value).glob("*.json")) if Path(value).is_dir() else [Path(value)] * Path(value).is_file()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a stage's folder; another run that wants it is told at once.

    Raises:
        ValueError: Another process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"{folder} is in use by another run: wait for it, or start without resume") from error
    try:
        yield
    finally:
        lock.release()


def environment(plan: Plan, world: int, device: str, command: Sequence[str]) -> dict[str, Any]:
    """What a result was made with: code, versions, machine, command."""
    return {
        "experiment": plan["experiment"],
        "command": " ".join(["python", *command]),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git": _git(),
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "world_size": world,
        "cores": os.cpu_count(),
        "seed": plan["seed"],
        "sample": plan["sample"],
    }


def _git() -> dict[str, Any] | None:
    home = Path(__file__).resolve().parent
    try:
        commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=home, text=True, stderr=subprocess.DEVNULL)
        status = subprocess.check_output(["git", "status", "--porcelain"], cwd=home, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(status.strip())}


def typed_command() -> list[str]:
    """The command line as it was typed, from the script's name on."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
