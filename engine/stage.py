"""One stage: build, fit, test, save. The same code in the run's own process and in each rank of several."""

import json
import logging
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import get_class, instantiate
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only

from engine.check import check_targets
from engine.checkpoints import load_stage
from engine.features import CacheFeatures, wrap
from engine.hooks import LastCheckpoint, RandomState, StepLog
from engine.joins import Joined
from engine.loggers import MetricsFile, finish_wandb, introduce_run, show_pictures
from engine.progress import Progress
from engine.record import read_rows
from engine.runs import write_json

log = logging.getLogger("nunchi")
Spec = dict[str, Any]

EXPECTED_WARNINGS = {
    "module\\(s\\) in eval mode at the start of training": "a frozen trunk is kept in eval mode on purpose",
    "does not have many workers": "our loaders decode in threads",
    "isinstance\\(treespec, LeafSpec\\)": "Lightning 2.6 itself, Lightning-AI/pytorch-lightning#21326",
    "Checkpoint directory .* exists and is not empty": "a resumed stage",
    "You have overridden `.*` .*but no": "a technique without a validation split",
    "smaller than the logging interval": "short epochs are fine, each step is in metrics.jsonl",
}


@dataclass
class Built:
    """A stage's parts, ready to fit."""

    module: pl.LightningModule
    data: Any
    trainer: pl.Trainer
    log: StepLog
    stage: dict[str, Any]


def run_spec(spec: Spec) -> None:
    """Do what a spec says: fit a stage, or evaluate a finished one."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", f".*{message}")
    evaluate_stage(spec) if spec["do"] == "evaluate" else fit_stage(spec)


def fit_stage(spec: Spec) -> dict[str, Any]:
    """Fit, test and save one stage.

    Args:
        spec: `name`, `out`, `seed`, `stage` (module, data, callbacks, trainer, metric, mode), `logger`, `sample`,
            `checkpoint_every`, `resume`: plain values, as they come from the stage's `spec.json`.

    Returns:
        What the done-file holds: metrics, seconds, epochs.
    """
    exit_code = 1
    try:
        seconds, built = _timed(build, spec)
        fit_seconds, best = _timed(_fit, built, spec)
        test_seconds, metrics = _timed(_test, built, best)
        result = _result(built, spec, best, metrics, {"build": seconds, "fit": fit_seconds, "test": test_seconds})
        show_pictures(built.trainer.loggers, Path(built.trainer.default_root_dir))
        _save(built, spec, result)
        exit_code = 0
        return result
    finally:
        finish_wandb(exit_code)


def _timed(function: Any, *args: Any) -> Any:
    start = time.perf_counter()
    value = function(*args)
    seconds = round(time.perf_counter() - start, 3)
    return seconds, value


def build(spec: Spec) -> Built:
    """Data first, then the module with what only the data know filled in, then callbacks, loggers and trainer."""
    stage, home = dict(spec["stage"]), Path(spec["out"]) / spec["name"]
    pl.seed_everything(spec["seed"], verbose=False)
    data, joined = build_data(stage["data"]), Joined(stage["joins"])
    stage["module"] = fill(stage["module"], data.facts | joined.facts)
    check_targets(stage["module"], f"stages.{spec['name']}.module", filled=True)
    pl.seed_everything(spec["seed"], verbose=False)
    module = instantiate(stage["module"], _convert_="all")
    if joined.states:
        module.join(joined.states)
    wrapped = wrap(stage | {"features_gb": spec["features_gb"]}, spec["name"], module, data)
    step_log = StepLog(Progress(spec["name"]), stage["metric"])
    checkpoint = LastCheckpoint(home / "last.ckpt", spec["checkpoint_every"], step_log)
    callbacks = [instantiate(node, _convert_="all") for node in _in_order(stage["callbacks"])]
    trainer = instantiate(
        stage["trainer"], _convert_="all", default_root_dir=str(home), logger=_loggers(spec, home),
        callbacks=[step_log, RandomState(), *callbacks, *_cache(wrapped, data, stage), checkpoint],
        use_distributed_sampler=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=True,
    )  # fmt: skip
    _describe_data(data, spec, home)
    return Built(module, wrapped, trainer, step_log, stage)


def _cache(wrapped: Any, data: Any, stage: dict[str, Any]) -> list[CacheFeatures]:
    if wrapped is data:
        return []
    home = Path(stage["data"]["root"]).parent / ".features"  # beside the data, so that every run on them finds it
    config = stage["module"].get("encoder", stage["module"].get("trunks"))
    return [CacheFeatures(wrapped, home, stage["trainer"]["precision"], config)]


def draw_sample(node: dict[str, Any]) -> None:
    """Draw the small set that a data config's class has, where its `root` says, unless it is there."""
    get_class(node["_target_"]).draw_sample(Path(node["root"]))  # type: ignore[attr-defined]


def build_data(node: dict[str, Any], setup: bool = True) -> Any:
    """A DataModule that has looked at its files, so that it knows its facts; or will when it is asked for them."""
    data = instantiate(node, _convert_="all")
    data.prepare_data()
    if setup:
        data.setup("fit")
    return data


def fill(module: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The module's config with every `null` that the data have a fact for."""
    return {key: facts.get(key) if value is None else value for key, value in module.items()}


def _in_order(callbacks: dict[str, Any]) -> list[dict[str, Any]]:
    """Warm start before everything else: a freeze that came first would hold the weights that it replaces."""
    return sorted(callbacks.values(), key=lambda node: not node["_target_"].endswith("WarmStart"))


def _loggers(spec: Spec, home: Path) -> list[Logger]:
    last_row = -1
    if spec["resume"] and (home / "last.ckpt").is_file():
        checkpoint = torch.load(home / "last.ckpt", map_location="cpu", weights_only=True, mmap=True)
        last_row = checkpoint["callbacks"]["StepLog"]["last_row"]
    others = (
        instantiate(spec["logger"], _convert_="all")(out=Path(spec["out"]), stage=spec["name"])
        if spec["logger"]
        else []
    )
    config = {key: spec.get(key) for key in ("experiment", "variant", "seed", "sample")} | {spec["name"]: spec["stage"]}
    introduce_run(others, config, spec["stage"]["metric"], spec["stage"]["mode"])
    return [MetricsFile(home / "metrics.jsonl", last_row), *others]


@rank_zero_only
def _describe_data(data: Any, spec: Spec, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    survey = data.survey() | {"target": spec["stage"]["data"]["_target_"], "sample": spec["sample"]}
    write_json(home / "data.json", survey)
    counts = ", ".join(f"{n:,} {split}" for split, n in survey["counts"].items())
    log.info("%s: %s photos from %s", spec["name"], counts, survey["root"])
    for note in survey["notes"]:
        log.info("%s: %s", spec["name"], note)


def _fit(built: Built, spec: Spec) -> dict[str, Any] | None:
    """Train, then put the chosen weights into the module."""
    last = Path(spec["out"]) / spec["name"] / "last.ckpt"
    resume = spec["resume"] and last.is_file()
    built.trainer.fit(built.module, datamodule=built.data, ckpt_path=str(last) if resume else None, weights_only=True)
    best: Any = next((c for c in built.trainer.checkpoint_callbacks if getattr(c, "best_model_path", "")), None)
    if best is None:
        return None
    path = Path(built.trainer.default_root_dir) / Path(best.best_model_path).name  # the folder may have been moved
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    built.module.load_state_dict(checkpoint["state_dict"])
    value = float(best.best_model_score) if best.best_model_score is not None else None
    return {"epoch": checkpoint["epoch"], "metric": best.monitor, "value": value}


def _test(built: Built, best: dict[str, Any] | None) -> dict[str, float]:
    """Judge the chosen weights once on the test split; a test split without labels is predicted instead."""
    metrics: Mapping[str, float] = {}
    if "test" in built.data.splits:
        metrics = built.trainer.test(built.module, datamodule=built.data, verbose=False)[0]
    if "predict" in built.data.splits:
        built.trainer.predict(built.module, datamodule=built.data, return_predictions=False)
    return dict(metrics)


def _result(built: Built, spec: Spec, best: Any, tested: dict[str, float], seconds: dict[str, float]) -> dict[str, Any]:
    rows = list(read_rows(Path(built.trainer.default_root_dir) / "metrics.jsonl"))
    chosen = [r for r in rows if any(k.startswith("val/") for k in r) and (best is None or r["epoch"] == best["epoch"])]
    validated = {k: v for k, v in (chosen[-1] if chosen else {}).items() if k.startswith("val/")}
    return {
        "stage": spec["name"],
        "metrics": validated | {k: float(v) for k, v in tested.items()},
        "judged_by": spec["stage"]["metric"],
        "best": best,
        "epochs": built.trainer.current_epoch,
        "seconds": seconds,
        "data_wait": round(built.log.data_wait, 4),
        "key": spec["key"],
    }


def _save(built: Built, spec: Spec, result: dict[str, Any]) -> None:
    """The stage's weights and what builds its module again, then the done-file: a stage without one is not done."""
    built.trainer.strategy.barrier()
    if built.trainer.is_global_zero:
        out = Path(spec["out"])
        content = {
            "state_dict": {k: v.cpu() for k, v in built.module.state_dict().items()},
            "stage": {"module": built.stage["module"], "data": built.stage["data"]},
            "facts": built.data.facts,
            "experiment": spec["experiment"],
        }
        aside = out / f"{spec['name']}.ckpt.tmp"
        aside.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, aside)
        aside.replace(out / f"{spec['name']}.ckpt")
        write_json(out / f"{spec['name']}.json", result)
    built.trainer.strategy.barrier()


def evaluate_stage(spec: Spec) -> dict[str, float]:
    """Test a finished stage's checkpoint once more, as many processes as the spec's trainer has.

    Args:
        spec: `checkpoint`, `root` (or `None` for the run's own data), `out`, `name`, `stage` (trainer).
    """
    module, data, _ = load_stage(Path(spec["checkpoint"]))
    if spec["root"]:
        data.root = Path(spec["root"])
    home = Path(spec["out"]) / spec["name"]
    trainer = instantiate(
        spec["stage"]["trainer"], default_root_dir=str(home), logger=False, use_distributed_sampler=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    metrics = {key: float(value) for key, value in trainer.test(module, datamodule=data, verbose=False)[0].items()}
    if trainer.is_global_zero:
        write_json(home / "evaluation.json", metrics)
    trainer.strategy.barrier()
    return metrics


def read_spec(path: Path) -> Spec:
    """A stage's spec, as the orchestrating process wrote it for its ranks."""
    spec: Spec = json.loads(path.read_text(encoding="utf-8"))
    return spec
