"""The command line as people type it: one's own tasks, flags that are settings, words that are no settings."""

from collections.abc import Callable

import pytest
import torch

from engine.devices import settle_trainer
from engine.overrides import meant, replacing
from engine.suggest import explain
from tests.test_config import plan, refusal

OWN = "stages.fit.data.classes={colour: [red, green], sleeve: 3}"


def test_tasks_of_ones_own_take_the_place_of_the_data_sets() -> None:
    assert plan(OWN)["stages"]["fit"]["data"]["classes"] == {"colour": ["red", "green"], "sleeve": 3}
    assert plan("stages.fit.data.classes.Daily=9")["stages"]["fit"]["data"]["classes"]["Daily"] == 9
    assert replacing([OWN, "seed=1"]) == ["~stages.fit.data.classes", f"+{OWN}", "seed=1"]
    assert replacing(replacing([OWN])) == replacing([OWN])


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--sample=true", r"--sample=true: settings have no hyphens before them: sample=true"),
        ("--experiment", r"settings have no hyphens before them: experiment=\.\.\."),
        ("--trainer.devices=2", r"trainer\.devices=2"),
    ],
)
def test_a_setting_with_hyphens_is_refused(typed: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        meant([typed])
    assert meant(["seed=0,1", "-m", "--cfg", "job", "--help"]) == ["-m", "seed=0,1", "--cfg", "job", "--help"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("fashion_mtl", "'fashion_mtl' is no key=value; did you mean 'experiment=fashion_mtl'"),
        ("seed=0,1", "'seed=0,1' lists several values"),
        ("stages.fit.data.augment={rotat: 3}", "augment.rotat'; did you mean 'stages.fit.data.augment.rotate'"),
    ],
)
def test_what_is_no_setting_is_refused_with_the_way_on(typed: str, said: str) -> None:
    assert said in refusal(typed)


def test_memory_that_does_not_suffice_is_one_sentence() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes."),
        MemoryError(),
    ):
        assert explain(error).startswith("memory does not suffice (")
        assert "\n" not in explain(error)


def test_a_gpu_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    trainer = {"accelerator": "gpu", "devices": 1, "precision": "auto", "strategy": "auto"}
    with pytest.raises(ValueError, match=r"trainer\.accelerator=gpu: torch finds no GPU"):
        settle_trainer(trainer, "ddp")


@pytest.mark.parametrize(
    ("typed", "said"),
    [("check=true", "check=true looks at one run"), ("resume=latest", "resume=latest: there is no such sweep in")],
)
def test_a_multirun_that_cannot_begin_says_so_in_one_line(
    typed: str, said: str, cli: Callable[..., tuple[int, str]]
) -> None:
    code, printed = cli("-m", "experiment=spu", "seed=0,1", typed)
    assert code == 1
    assert printed.startswith(f"error: {said}")
    assert len(printed.splitlines()) == 1
