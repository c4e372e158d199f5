"""Makes runs: `python run.py experiment=NAME [key=value ...]`. Without arguments it lists the experiments."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from engine.overrides import meant
from engine.schema import register
from engine.suggest import explain

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONF = Path(__file__).resolve().parent / "conf"
register()


@hydra.main(version_base="1.3", config_path="conf", config_name="run")
def main(cfg: "DictConfig") -> float | None:
    """One job: a run of its own, or one of a sweep's."""
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        from engine.sweep import run_job

        return run_job(cfg, job)
    from engine.session import start

    try:
        return start(cfg, job)
    except Exception as error:
        sys.exit(f"error: {explain(error)}")


def experiments() -> str:
    """The experiments with the first line that each says of itself."""
    lines = ["python run.py experiment=NAME [sample=true] [key=value ...]      --help says more\n"]
    for path in sorted((CONF / "experiment").glob("**/*.yaml")):
        first = next(line for line in path.read_text(encoding="utf-8").splitlines()[1:] if line.startswith("#"))
        name = path.relative_to(CONF / "experiment").with_suffix("").as_posix()
        lines.append(f"  {name:20} {first.lstrip('# ')}")
    return "\n".join(lines)


def command_line() -> None:
    """Run `main`; whatever goes wrong is one sentence on the terminal, its traceback in the run's log."""
    if len(sys.argv) == 1:
        print(experiments())
        return
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that Hydra raises instead of printing and exiting itself
    try:
        sys.argv[1:] = meant(sys.argv[1:])
        main()
    except KeyboardInterrupt:  # before or between fits; within one a checkpoint is written first
        sys.exit(130)
    except Exception as error:
        overrides = [arg for arg in sys.argv[1:] if "=" in arg and not arg.startswith("-")]
        sys.exit(f"error: {explain(error, overrides)}")


if __name__ == "__main__":
    command_line()
