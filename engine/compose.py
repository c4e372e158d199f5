"""From Hydra's config to a run's plan: a plain, resolved dict with everything that its stages need."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from engine.schema import Run, Stage
from engine.suggest import nearest, said_by_resolver

Plan = dict[str, Any]


def make_plan(cfg: DictConfig, overrides: Sequence[str], experiment: str, out: Path) -> Plan:
    """Resolve a composed config for the run folder `out`.

    Args:
        cfg: What Hydra composed.
        overrides: The command line's `key=value`s, which win over `on_sample` and over a stage's own `trainer`.
        experiment: The experiment's name.
        out: The run's folder, which `${out}` in the config stands for.

    Raises:
        ValueError: An experiment without stages, a key that nothing reads, an unknown stage in `only`.
    """
    cfg = cfg.copy()
    typed = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(list(overrides))}
    cfg.out = str(out)
    if cfg.sample:
        _apply_sample(cfg, set(typed))
    if not cfg.stages:
        named = "no experiment was named" if experiment == "run" else f"experiment {experiment!r} has no stages"
        raise ValueError(f"{named}: say experiment=NAME; `python run.py` lists them")
    plan = _resolved(cfg)
    _refuse_unread(plan)
    _lay_trainer(plan, {k.removeprefix("trainer."): v for k, v in typed.items() if k.startswith("trainer.")}, typed)
    choose(plan)
    return {"experiment": experiment} | plan


def _apply_sample(cfg: DictConfig, typed: set[str]) -> None:
    """Samples lie below `<data_dir>/samples`; a run on them is smaller unless the command line says otherwise."""
    cfg.data_dir = str(Path(cfg.data_dir) / "samples")
    for key, value in OmegaConf.to_container(cfg.on_sample).items():  # type: ignore[union-attr]
        if not any(key == t or str(key).startswith(f"{t}.") for t in typed):
            OmegaConf.update(cfg, str(key), value, force_add=True)


def _resolved(cfg: DictConfig) -> Plan:
    try:
        plan = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise ValueError(f"{key} has no value and needs one: give it on the command line, {key}=...") from error
    except OmegaConfBaseException as error:
        plain = f"the config cannot be resolved: {str(error).splitlines()[0]}"
        raise ValueError(said_by_resolver(error) or plain) from error
    assert isinstance(plan, dict)
    return {str(key): value for key, value in plan.items()}


def _refuse_unread(plan: Plan) -> None:
    """A `+key` gets past Hydra's schema; here it does not."""
    known = {field.name for field in fields(Run)}
    for key in plan.keys() - known:
        raise ValueError(f"nothing reads the key {key!r}{nearest(key, known)}")
    known = {field.name for field in fields(Stage)}
    for name, stage in plan["stages"].items():
        for key in stage.keys() - known:
            raise ValueError(f"nothing reads the key 'stages.{name}.{key}'{nearest(key, known)}")


def _lay_trainer(plan: Plan, from_command: dict[str, Any], typed: dict[str, Any]) -> None:
    """Each stage's trainer = the run's, then the stage's own, then what the command line says of either."""
    for name, stage in plan["stages"].items():
        own = {k: v for k, v in stage["trainer"].items() if f"stages.{name}.trainer.{k}" in typed}
        resolved = {key: plan["trainer"][key] for key in from_command if key in plan["trainer"]}
        stage["trainer"] = plan["trainer"] | stage["trainer"] | resolved | own


def choose(plan: Plan) -> None:
    """Settle `only`: a stage, or of stages that the data make all (`expert`) or one (`nike`, `Nike`, `expert/nike`).

    Raises:
        ValueError: There is no such stage.
    """
    only = plan["only"]
    if only is None or any(stage["each"] and "item" not in stage for stage in plan["stages"].values()):
        return  # which stages there are is known when the data were looked at
    chosen: dict[str, None] = {}
    for wanted in [only] if isinstance(only, str | int) else only:
        found = [name for name, stage in plan["stages"].items() if str(wanted) in _names(name, stage)]
        if not found:
            known = ", ".join(plan["stages"])
            raise ValueError(
                f"only=[{wanted}]: there is no such stage{nearest(str(wanted), plan['stages'])} (there are {known})"
            )
        chosen |= dict.fromkeys(found)
    plan["only"] = list(chosen)


def _names(name: str, stage: dict[str, Any]) -> set[str]:
    """All that a stage may be called by."""
    return {name} if stage.get("item") is None else {name, *name.split("/"), str(stage["item"])}
