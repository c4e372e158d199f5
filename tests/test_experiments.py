"""Every experiment of `conf/experiment`, found by looking there: composes, and runs all its stages on drawn samples."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from engine.record import read_rows
from engine.suggest import composed
from tests.conftest import ROOT
from tests.test_config import plan_of

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf/experiment").glob("*.yaml"))
PIPELINES = sorted(path.stem for path in (ROOT / "conf/pipeline").glob("*.yaml"))
Cli = Callable[..., tuple[int, str]]


def small(experiment: str, run: Path) -> list[str]:
    """The overrides that make an experiment's samples take seconds: a tiny encoder, small photos, two epochs.

    Args:
        experiment: its name.
        run: an earlier one, for an experiment that takes its encoder from there.
    """
    overrides = [f"experiment={experiment}", "sample=true", "trainer.accelerator=cpu", "trainer.max_epochs=2"]
    for name, stage in composed([f"experiment={experiment}"]).stages.items():
        if "encoder_from" in str(OmegaConf.to_container(stage)) and "encoder_from" not in str(overrides):
            overrides.append(f"encoder_from={run}")
        if "encoder" in stage.module and not OmegaConf.is_interpolation(stage.module, "encoder"):
            overrides.append(f"stages.{name}.module.encoder.name=test_resnet")
        if "image_size" in stage.data:
            overrides.append(f"stages.{name}.data.image_size=32")
    return overrides


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_runs_through_all_stages_on_samples(experiment: str, cli: Cli, run: Path, tmp_path: Path) -> None:
    code, printed = cli(*small(experiment, run))
    assert code == 0, printed
    (made,) = (tmp_path / experiment).iterdir()
    stages = yaml.safe_load((made / "config.yaml").read_text(encoding="utf-8"))["stages"]
    for name, stage in stages.items():
        done = json.loads((made / f"{name}.json").read_text(encoding="utf-8"))
        assert stage["metric"] in done["metrics"]
        assert any(key.startswith("test/") for key in done["metrics"])
        losses = [row["train/loss"] for row in read_rows(made / name / "metrics.jsonl") if "train/loss" in row]
        assert losses
    assert "DRAWN SAMPLES" in printed
    assert "DRAWN SAMPLES" in (made / "report.html").read_text(encoding="utf-8")
    assert list((made / "wandb").glob("offline-run-*")), "W&B offline by default"


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_pipelines_differ_in_what_they_say(pipeline: str) -> None:
    stages = plan_of("spu", f"pipeline={pipeline}")["stages"]
    without_h = pipeline in ("random", "mean", "first")
    for stage in stages.values():
        assert (stage["module"]["hidden_dim"] is None) is without_h
    frozen = stages["pu"]["callbacks"]["freeze"]["modules"]
    assert frozen == (["encoder", "w2"] if pipeline == "pu" else ["encoder"])


@pytest.mark.slow
def test_the_fashion_classifier_learns_from_the_samples(cli: Cli, tmp_path: Path) -> None:
    """What `make demo` runs: each task far above its commonest class, which is at most .42 of the samples."""
    code, printed = cli("experiment=fashion_mtl", "sample=true", "logger=none")
    assert code == 0, printed
    (run,) = (tmp_path / "fashion_mtl").iterdir()
    metrics = json.loads((run / "fit.json").read_text(encoding="utf-8"))["metrics"]
    for task in ("Daily", "Gender", "Embellishment"):
        assert metrics[f"test/{task}/top1"] > 0.6, metrics
