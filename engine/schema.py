"""The shape of a run's config. Hydra refuses what does not fit, `engine.check` what slips past Hydra with a `+`."""

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import II, MISSING, OmegaConf

from engine import earlier


class Mode(Enum):
    """Which direction of a metric is better."""

    max = "max"
    min = "min"


class Leak(Enum):
    """What to do with a photo that occurs in two splits: refuse, drop it from the training side, or only say so."""

    error = "error"
    drop = "drop"
    warn = "warn"


class BadImage(Enum):
    """What to do with a photo that cannot be read: refuse, or leave it out and count it."""

    error = "error"
    skip = "skip"


class Features(Enum):
    """Whether a frozen trunk's features are computed once: where it is valid, always (or an error), or never."""

    auto = "auto"
    on = "on"
    off = "off"


@dataclass
class Stage:
    """One fit: a technique, its data, its callbacks, and what it changes of the run's trainer.

    `each` names an argument of the data: the stage becomes one stage for every value that the data have for it. `joins`
    names arguments of the module, and the finished stages (a checkpoint, or a folder of them) that each is made of.
    """

    module: dict[str, Any] = MISSING
    data: dict[str, Any] = MISSING
    callbacks: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    features: Features = Features.auto
    each: str | None = None
    joins: dict[str, Any] = field(default_factory=dict)
    metric: str = "${metric}"
    mode: Mode = II("mode")  # noqa: RUF009 - a string that OmegaConf resolves


@dataclass
class Cluster:
    """Where this machine stands among `trainer.num_nodes`, and where they meet."""

    node: int = 0
    rendezvous: str | None = None


@dataclass
class Theirs:
    """Figures that a source claims for its own data: shown beside ours, always marked as theirs."""

    cite: str = MISSING
    note: str = ""
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class Run:
    """Every key that a run has at its top level."""

    metric: str = MISSING
    mode: Mode = MISSING
    stages: dict[str, Stage] = field(default_factory=dict)
    variant: str | None = None
    on_sample: dict[str, Any] = field(default_factory=dict)
    theirs: Theirs | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] | None = None
    seed: int = MISSING
    data_dir: str = MISSING
    out_dir: str = MISSING
    out: str | None = None
    folder: str | None = None
    cluster: Cluster = field(default_factory=Cluster)
    sample: bool = False
    on_leak: Leak = Leak.error
    on_bad_image: BadImage = BadImage.error
    checkpoint_every: float = MISSING
    features_gb: float = MISSING
    only: Any = None
    start_from: str | None = None
    encoder_from: str | None = None
    resume: str | None = None
    force: bool = False
    check: bool = False


def register() -> None:
    """Make known to Hydra: `schema`, the first of `conf/run.yaml`'s defaults, and what its `${...:}` stand for."""
    ConfigStore.instance().store(name="schema", node=Run)
    earlier.register()
    OmegaConf.register_new_resolver("sweep_folder", sweep_folder, use_cache=True, replace=True)


def sweep_folder(out_dir: str, resume: str | None) -> str:
    """The folder of a multirun: a new one, or the one that `resume=latest`, or `resume=<its folder>`, means.

    Raises:
        ValueError: There is no such sweep.
    """
    home = Path(out_dir) / "sweeps"
    if resume is None:
        return str(home / f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(2)}")
    known = sorted(str(path) for path in home.iterdir() if path.is_dir()) if home.is_dir() else []
    if resume == "latest" and known:
        return known[-1]
    if not Path(resume).is_dir():
        raise ValueError(f"resume={resume}: there is no such sweep in {home}; run the command without resume first")
    return resume
