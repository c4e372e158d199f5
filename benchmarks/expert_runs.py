"""Experts as whole runs: N in one run over N single runs, and two lanes over one process with two threads.

Claims: one run that trains N experts takes at most 1.05 times the sum of N runs that train one each, as commands from
start to exit and in the time of their stages alone; and two experts side by side, one thread each, are at least 1.05
times as fast as one after the other with two threads. Drawn shoes of four brands, ResNet-18, 64 pixels; wall time on
an otherwise idle machine of two cores; every side in turn.

    python benchmarks/expert_runs.py [--quick]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from subprocess import PIPE

from rounds import Taken, in_turn, show

ROOT = Path(__file__).parents[1]


class Runs:
    """Runs of `experiment=brand_experts` on one drawn set.

    Args:
        folder: of the data and of the runs.
        epochs: of each expert.

    Attributes:
        stages: seconds that the stages of each side took by their own records, round by round, the warm-up first.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder, self.epochs = folder, epochs
        self.environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        self.stages: Taken = defaultdict(list)

    def experts(self) -> list[str]:
        """The stages of all experts, from a run that warms up and draws the data."""
        self.command(["expert"], 1)
        return sorted(f'"expert/{path.stem}"' for path in self._newest().glob("expert/*.ckpt"))

    def side(self, name: str, commands: list[tuple[list[str], int]]) -> float:
        """Seconds of wall time of some commands, each with its stages and devices."""
        taken = [self.command(*command) for command in commands]
        self.stages[name].append(sum(stages for _, stages in taken))
        return sum(seconds for seconds, _ in taken)

    def command(self, only: list[str], devices: int) -> tuple[float, float]:
        """Seconds of one run, from start to exit, and of its stages."""
        settings = [
            "experiment=brand_experts", "sample=true", "logger=none", "trainer.accelerator=cpu",
            f"trainer.devices={devices}", f"only=[{','.join(only)}]", f"stages.expert.trainer.max_epochs={self.epochs}",
            f"data_dir={self.folder / 'data'}", f"out_dir={self.folder / 'runs'}",
        ]  # fmt: skip
        start = time.perf_counter()
        subprocess.run([sys.executable, str(ROOT / "run.py"), *settings], check=True, stdout=PIPE, env=self.environment)
        seconds = time.perf_counter() - start
        records = [json.loads(path.read_text()) for path in self._newest().glob("expert/*.json")]
        return seconds, sum(sum(record["seconds"].values()) for record in records)

    def _newest(self) -> Path:
        return max((self.folder / "runs" / "brand_experts").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two experts, one epoch: shows that it runs, no more")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), 1 if quick else 15)
        experts = runs.experts()[: 2 if quick else None]
        sides = {
            "together": [(experts, 1)],
            "single runs": [([expert], 1) for expert in experts],
            "two lanes": [(experts, 2)],
        }
        jobs = {name: partial(runs.side, name, commands) for name, commands in sides.items()}
        taken = in_turn(jobs, 1 if quick else 3)
    print(f"{len(experts)} experts, {runs.epochs} epochs each: whole commands")
    show(taken, "together", "single runs", "at most 1.05")
    show(taken, "together", "two lanes", "1.05")
    print("their stages alone")
    show({name: seconds[1:] for name, seconds in runs.stages.items()}, "together", "single runs", "at most 1.05")


if __name__ == "__main__":
    main()
