"""Every benchmark runs at its quick size; what it measures is its own business."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

BENCHMARKS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if path.name not in ("memory.py", "rounds.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_runs(path: os.PathLike[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(path), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "goal" in done.stdout or " x" in done.stdout
