"""Optuna proposes each job of a multirun from those before: `hydra/sweeper=search`. Hydra finds sweepers only in here.

Hydra's own plugin for Hydra 1.3 is bound to Optuna 2, of 2022, and begins at job 0 again after a stop; this one runs
with today's Optuna and keeps its study in the sweep's folder. A trial's number is its job's number, so the same command
with `resume=latest` goes on: trials that were stopped are finished from their checkpoints, then new ones follow.
"""

import math
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from engine.together import leave_if_asked

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STUDY = "study.log"
SAMPLERS = ("tpe", "random")


class OptunaSearch(Sweeper):
    """Searches for the settings with the best judged metric of the last stage.

    The sampler is seeded anew for each trial from the study's seed and the trial's number, so that a search which was
    stopped proposes what it would have proposed.

    Args:
        trials: How many in all, those of earlier starts of the same sweep included.
        at_once: Proposed together, for a launcher that runs several jobs at a time.
        sampler: `tpe`, which learns from finished trials, or `random`.
        startup: Random trials before `tpe` begins to learn.
        seed: Of the proposals.
        params: Override by key, as on the command line, which wins: `interval(0, 1)`, `tag(log, interval(1e-4, 1))`,
            `int(interval(1, 8))`, `range(1, 9)`, `choice(a, b)`.
    """

    def __init__(
        self, trials: int, at_once: int, sampler: str, startup: int, seed: int, params: dict[str, Any] | None
    ) -> None:
        if find_spec("optuna") is None:
            raise ValueError("a search needs Optuna: pip install 'nunchi[sweeps]'")
        if sampler not in SAMPLERS:
            raise ValueError(f"hydra.sweeper.sampler={sampler}: there are {' and '.join(SAMPLERS)}")
        if trials < 1 or at_once < 1:
            raise ValueError(f"hydra.sweeper.trials={trials} and hydra.sweeper.at_once={at_once} must be 1 or more")
        self.trials, self.at_once, self.sampler, self.startup = trials, at_once, sampler, startup
        self.seed, self.params = seed, dict(params or {})
        self.config: DictConfig
        self.launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's: remember the config and make the launcher that runs jobs."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Propose, launch and tell until there are as many trials as asked for."""
        fixed, space = self._read(arguments)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        study = self._open(folder)
        for trial in [trial for trial in study.trials if not trial.state.is_finished()]:
            self._run(study, fixed, [trial])
        while (left := self.trials - len(study.trials)) > 0:
            self._run(study, fixed, [self._propose(study, space) for _ in range(min(left, self.at_once))])
        self._tell_best(study)

    def _read(self, arguments: Sequence[str]) -> "tuple[list[str], dict[str, BaseDistribution]]":
        """The overrides that every trial has, and what is searched."""
        typed = OverridesParser.create().parse_overrides(list(arguments))
        named = {override.get_key_element() for override in typed}
        preset = [f"{key}={value}" for key, value in self.params.items() if key not in named]
        fixed, space = [], {}
        for override in [*OverridesParser.create().parse_overrides(preset), *typed]:
            key = override.get_key_element()
            if not override.is_sweep_override():
                fixed.append(f"{key}={override.get_value_element_as_str()}")
            elif key.rpartition(".")[2] == "seed":
                raise ValueError(
                    f"{override.input_line}: a seed is no setting to search; a search has one seed for all"
                )
            else:
                space[key] = distribution(override)
        if not space:
            raise ValueError("nothing to search: give ranges, such as 'stages.fit.module.dropout=interval(0, 0.5)'")
        return fixed, space

    def _open(self, folder: Path) -> "Study":
        """The study on disk, made or gone on with; better is what the last stage's mode says."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
        from optuna.study import StudyDirection

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        stage = list(self.config.stages.values())[-1]
        storage = JournalStorage(JournalFileBackend(str(folder / STUDY)))
        direction = StudyDirection.MINIMIZE if stage.mode.value == "min" else StudyDirection.MAXIMIZE
        return optuna.create_study(storage=storage, study_name="search", direction=direction, load_if_exists=True)

    def _propose(self, study: "Study", space: "dict[str, BaseDistribution]") -> "FrozenTrial":
        from optuna.samplers import RandomSampler, TPESampler

        seed = self.seed + 1000 * len(study.trials)
        tpe = self.sampler == "tpe"
        study.sampler = TPESampler(n_startup_trials=self.startup, seed=seed) if tpe else RandomSampler(seed=seed)
        number = study.ask(fixed_distributions=space).number
        return study.trials[number]

    def _run(self, study: "Study", fixed: list[str], trials: "Sequence[FrozenTrial]") -> None:
        """Launch trials with consecutive numbers, and tell the study what each came to."""
        from optuna.trial import TrialState

        batch = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
        self.validate_batch_is_legal(batch)
        returned = self.launcher.launch(batch, initial_job_idx=trials[0].number)
        leave_if_asked()  # these trials are finished when the search goes on
        for trial, job in zip(trials, returned, strict=True):
            value = judged(job)
            if value is None:
                study.tell(trial.number, state=TrialState.FAIL)
            else:
                study.tell(trial.number, value)

    def _tell_best(self, study: "Study") -> None:
        """On the terminal; the sweep's page has the rest."""
        finished = [trial for trial in study.trials if trial.value is not None]
        if finished:
            best = study.best_trial
            told = " ".join(f"{key}={value}" for key, value in best.params.items())
            print(f"best of {len(finished)} trials: {best.value:.4f}, job {best.number}: {told}")


def distribution(override: Override) -> "BaseDistribution":
    """Optuna's form of what an override searches; names, and ranges in steps that are no whole numbers, are choices."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    swept = override.value()
    if isinstance(swept, IntervalSweep):
        low, high, logarithmic = swept.start, swept.end, "log" in swept.tags
        if isinstance(low, int) and isinstance(high, int):  # `int(interval(...))`: a bare one has floats
            return IntDistribution(low, high, log=logarithmic)
        return FloatDistribution(float(low or 0.0), float(high or 0.0), log=logarithmic)
    if isinstance(swept, RangeSweep) and all(isinstance(v, int) for v in (swept.start, swept.stop, swept.step)):
        numbers = [int(text) for text in override.sweep_string_iterator()]
        return IntDistribution(min(numbers), max(numbers), step=abs(int(swept.step)))
    return CategoricalDistribution(list(_texts(override.sweep_string_iterator())))


def _texts(values: Iterable[Any]) -> Iterable[str]:
    return (str(value) for value in values)


def judged(job: JobReturn) -> float | None:
    """The value that a job returned; None for one that failed, which has none or one that is not a number."""
    try:
        value = job.return_value
    except Exception:  # it was told when it happened
        return None
    return float(value) if value is not None and math.isfinite(value) else None
