"""The Optuna sweeper: what it searches, what becomes of failures, and that a stopped search goes on unchanged."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from engine.compose import make_plan
from engine.session import settle
from engine.suggest import composed
from hydra_plugins.optuna_search import STUDY, OptunaSearch, distribution
from tests.conftest import ROOT, TINY

Value = Callable[[dict[str, float], int], float | None]
RANGES = ["x=interval(-1, 1)", "lr=tag(log, interval(1e-4, 1))", "experiment=fashion_mtl"]


class Returned:
    def __init__(self, value: float | None) -> None:
        self.value = value

    @property
    def return_value(self) -> float:
        if self.value is None:
            raise RuntimeError("the job failed")
        return self.value


class Fake:
    """A launcher whose jobs are a function of their overrides and number."""

    def __init__(self, value: Value) -> None:
        self.value, self.launched = value, []

    def launch(self, batch: Sequence[Sequence[str]], initial_job_idx: int) -> list[Returned]:
        jobs = []
        for number, overrides in enumerate(batch, initial_job_idx):
            pairs = dict(o.split("=") for o in overrides)
            self.launched.append((number, pairs))
            jobs.append(Returned(self.value({k: float(pairs[k]) for k in ("x", "lr")}, number)))
        return jobs


def search(folder: Path, value: Value, ranges: Sequence[str] = RANGES, **changes: Any) -> Fake:
    """Search in a folder with a fake launcher."""
    usual = {"trials": 6, "at_once": 1, "sampler": "tpe", "startup": 2, "seed": 0, "params": None}
    sweeper = OptunaSearch(**(usual | changes))
    config = composed(["experiment=fashion_mtl"])
    sweeper.config = OmegaConf.merge(OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}}), config)
    sweeper.validate_batch_is_legal = lambda batch: None  # type: ignore[method-assign]
    sweeper.launcher = launcher = Fake(value)  # type: ignore[assignment]
    sweeper.sweep(list(ranges))
    return launcher


def study_of(folder: Path) -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / STUDY))
    return optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))


def hill(found: dict[str, float], number: int) -> float:
    return -((found["x"] - 0.3) ** 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(0, 1)", FloatDistribution(0.0, 1.0)),
        ("tag(log, interval(1e-4, 1))", FloatDistribution(1e-4, 1.0, log=True)),
        ("int(interval(1, 8))", IntDistribution(1, 8)),
        ("range(2, 9, 2)", IntDistribution(2, 8, step=2)),
        ("range(0, 1, 0.5)", CategoricalDistribution(("0.0", "0.5"))),
        ("choice(a, b)", CategoricalDistribution(("a", "b"))),
        ("a,b", CategoricalDistribution(("a", "b"))),
    ],
)
def test_hydras_ranges_as_optunas(text: str, expected: object) -> None:
    assert distribution(OverridesParser.create().parse_override(f"key={text}")) == expected


def test_it_maximises_and_numbers_jobs_as_trials(tmp_path: Path) -> None:
    fake = search(tmp_path, hill, trials=25, startup=5)
    assert [number for number, _ in fake.launched] == list(range(25))
    assert all(pairs["experiment"] == "fashion_mtl" for _, pairs in fake.launched)
    study = study_of(tmp_path)
    assert study.direction.name == "MAXIMIZE"
    assert abs(study.best_params["x"] - 0.3) < 0.1


def test_a_failed_trial_is_recorded_as_failed_and_counts(tmp_path: Path) -> None:
    values: dict[int, float | None] = {1: None, 3: math.nan}
    search(tmp_path, lambda found, number: values.get(number, 0.5))
    states = [trial.state for trial in study_of(tmp_path).trials]
    assert states == [TrialState.FAIL if number in values else TrialState.COMPLETE for number in range(6)]


def test_a_stopped_search_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", hill)

    def stop(found: dict[str, float], number: int) -> float:
        if number == 3:
            raise KeyboardInterrupt
        return hill(found, number)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "stopped", stop)
    assert study_of(tmp_path / "stopped").trials[3].state == TrialState.RUNNING
    rest = search(tmp_path / "stopped", hill)
    assert rest.launched == whole.launched[3:], "the trial that was stopped first, then what would have come"
    assert search(tmp_path / "stopped", hill).launched == [], "all are there"
    assert len(search(tmp_path / "stopped", hill, trials=8).launched) == 2, "more are asked for"


def test_several_are_proposed_at_once(tmp_path: Path) -> None:
    fake = search(tmp_path, hill, trials=5, at_once=2)
    assert [number for number, _ in fake.launched] == [0, 1, 2, 3, 4]
    assert len({pairs["x"] for _, pairs in fake.launched}) == 5


@pytest.mark.parametrize(
    ("ranges", "changes", "said"),
    [
        (["lr=0.1"], {}, "nothing to search"),
        (["seed=0,1,2", "x=interval(0,1)"], {}, "a seed is no setting to search"),
        (RANGES, {"sampler": "grid"}, "tpe and random"),
        (RANGES, {"trials": 0}, "must be 1 or more"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    ranges: list[str], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        search(tmp_path, hill, ranges, **changes)


@pytest.mark.parametrize("path", sorted((ROOT / "conf/sweep").glob("*_search.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("end", [0, -1])
def test_both_ends_of_every_preset_are_settings_that_are_there(path: Path, end: int) -> None:
    """By the experiment of the command in the file's head."""
    text = path.read_text(encoding="utf-8")
    words = next(line for line in text.splitlines() if "run.py" in line).split()
    typed = [word for word in words if "=" in word and not word.startswith(("sweep=", "hydra."))]
    typed += [f"{key}={end_of(f'{key}={told}', end)}" for key, told in params_of(path.stem).items()]
    experiment = next(word.partition("=")[2] for word in typed if word.startswith("experiment="))
    settle(make_plan(composed(typed), typed, experiment, Path("OUT")))
    assert f"sweep={path.stem}" in words


def params_of(preset: str) -> dict[str, str]:
    content = yaml.safe_load((ROOT / f"conf/sweep/{preset}.yaml").read_text(encoding="utf-8"))
    return content["hydra"]["sweeper"]["params"]


def end_of(override: str, end: int) -> object:
    found = distribution(OverridesParser.create().parse_override(override))
    return found.choices[end] if isinstance(found, CategoricalDistribution) else (found.low, found.high)[end]


def test_a_search_from_the_command_line(cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    few = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "hydra.sweeper.trials=2"]
    ranges = "stages.fit.module.dropout=choice(2, 3)"  # both are refused by the module
    code, printed = cli("-m", *TINY, *few, "hydra/sweeper=search", ranges, "stages.fit.module.label_smoothing=0")
    assert code == 1
    (sweep,) = (tmp_path / "sweeps").iterdir()
    assert "2 of 2 jobs failed" in printed
    assert [trial.state for trial in study_of(sweep).trials] == [TrialState.FAIL, TrialState.FAIL]
    assert (sweep / "sweep.html").is_file()
