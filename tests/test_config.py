"""A config that cannot lie: what nothing reads is refused before anything is built, with the nearest right names."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.errors import HydraException

from engine.check import check_stage, check_targets
from engine.compose import Plan, make_plan
from engine.runs import changes, is_safe
from engine.suggest import composed, explain, nearest
from tests.conftest import ROOT


def plan_of(experiment: str, *overrides: str) -> Plan:
    """The plan that these overrides of an experiment come to."""
    every = [f"experiment={experiment}", *overrides]
    return make_plan(composed(every), every, experiment, Path("OUT"))


def plan(*overrides: str) -> Plan:
    """The plan that these overrides of `experiment=fashion_mtl` come to."""
    return plan_of("fashion_mtl", *overrides)


def refusal(*overrides: str) -> str:
    """The sentence with which these overrides are refused."""
    every = ["experiment=fashion_mtl", *overrides]
    try:
        found = plan(*overrides)
        for name, stage in found["stages"].items():
            for part in ("module", "data", "callbacks", "trainer"):
                check_targets(stage[part], f"stages.{name}.{part}")
    except (ValueError, HydraException) as error:
        return explain(error, every)
    raise AssertionError(f"{overrides} was accepted")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.max_epoch=3", "'trainer.max_epochs'"),
        ("+trainer.precison=16-mixed", "'precision'"),
        ("stages.fit.module.encoder.nam=resnet18", "'stages.fit.module.encoder.name'"),
        ("+stages.fit.module.encoder.nam=resnet18", "'name'"),
        ("stages.fit.data.batchsize=3", "'stages.fit.data.batch_size'"),
        ("+sed=1", "'seed'"),
        ("+stages.fit.modul=1", "'module'"),
        ("modle=big", "'mode'"),
        ("logger=wandbb", "'wandb'"),
        ("experiment=fashion_mtI", "'fashion_mtl'"),
        ("seed=abc", "could not be converted to Integer"),
        ("stages.fit.module.dropout=abc", "got 'abc'"),
        ("stages.fit.module._target_=lightning_modules.fashion_mtl.FashonMTL", "'FashionMTL'"),
        ("only=[fitt]", "'fit'"),
        ("stages=null", "stages"),
    ],
)
def test_wrong_words_are_refused_with_the_right_ones(override: str, said: str) -> None:
    assert said in refusal(override)


def test_a_typo_inside_an_experiment_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = (ROOT / "conf/experiment/fashion_mtl.yaml").read_text(encoding="utf-8")
    (tmp_path / "experiment/typo.yaml").write_text(text.replace("metric:", "metrik:"), encoding="utf-8")
    command = [sys.executable, str(ROOT / "run.py"), "--config-dir", str(tmp_path), "experiment=typo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "metrik" in done.stderr
    assert "'metric'" in done.stderr


def test_the_command_line_wins_over_a_stage_and_over_the_samples_deltas() -> None:
    stage = plan("trainer.max_epochs=3", "sample=true")["stages"]["fit"]
    assert stage["trainer"]["max_epochs"] == 3
    assert stage["data"]["image_size"] == 64, "what the experiment says of samples"
    assert plan("sample=true", "stages.fit.data.image_size=96")["stages"]["fit"]["data"]["image_size"] == 96


def test_samples_lie_apart_from_photos() -> None:
    assert plan("sample=true", "data_dir=d")["stages"]["fit"]["data"]["root"] == "d/samples/fascode"
    assert plan("data_dir=d")["stages"]["fit"]["data"]["root"] == "d/fascode"


def test_consistency_without_unlabelled_photos_is_refused_before_any_stage() -> None:
    stages = plan_of("fashion_clean", "stages.fit.data.unlabelled=null", "trainer.devices=1")["stages"]
    check_stage("first", stages["first"])
    with pytest.raises(ValueError, match=r"stages\.fit\.module\.uda learns from unlabelled photos"):
        check_stage("fit", stages["fit"])


def test_changes_are_told_apart() -> None:
    old = plan()
    assert changes(old, plan()) == []
    rows = {key: safe for key, *_, safe in changes(old, plan("trainer.max_epochs=3", "stages.fit.module.dropout=0.5"))}
    assert rows["stages.fit.module.dropout"] is False
    assert rows["stages.fit.trainer.max_epochs"] is True


@pytest.mark.parametrize(
    ("key", "safe"),
    [
        ("logger.mode", True),
        ("stages.fit.trainer.devices", True),
        ("stages.fit.data.batch_size", False),
        ("seed", False),
    ],
)
def test_which_keys_keep_the_meaning(key: str, safe: bool) -> None:
    assert is_safe(key) is safe


def test_a_full_disk_is_one_sentence() -> None:
    for error in (
        OSError(28, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/0"),
    ):
        assert "disk is probably full" in explain(error)


def test_nearest_names_nothing_when_nothing_is_near() -> None:
    assert nearest("zzz", ["abc"]) == ""


def test_help_and_config_answer_at_once() -> None:
    """No torch at module level; the bound is loose for a busy machine, the import is what is tested."""
    for arguments in (["--help"], ["--cfg", "job", "experiment=fashion_mtl"], []):
        start = time.perf_counter()
        command = [sys.executable, "-X", "importtime", str(ROOT / "run.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert time.perf_counter() - start < 3
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "hydra" in imported
        assert not imported & {"torch", "lightning", "timm"}
        assert "fashion_mtl" in done.stdout


def test_the_list_of_experiments_has_a_line_for_each() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "run.py")], capture_output=True, text=True, check=True)
    for path in (ROOT / "conf/experiment").glob("*.yaml"):
        assert f"  {path.stem} " in done.stdout


def test_overrides_may_stand_before_and_behind_the_multirun_flag() -> None:
    command = [sys.executable, "run.py", "experiment=fashion_mtl", "-m", "sweep=few_label"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "'few_labels'" in done.stderr
