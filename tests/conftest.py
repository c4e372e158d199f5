"""What the tests share: the command line in a process of its own, and one small sample set."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.schema import register

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["OMP_NUM_THREADS"] = "1"  # threads of several busy processes wait for each other
os.environ["MPLBACKEND"] = "Agg"
register()

# A run that takes seconds: the drawn fashion samples at 32 px, a tiny network, a few steps an epoch.
TINY = [
    "experiment=fashion_mtl", "sample=true", "logger=none", "trainer.accelerator=cpu", "trainer.precision=32-true",
    "stages.fit.module.encoder.name=test_resnet", "stages.fit.data.image_size=32", "stages.fit.data.batch_size=64",
    "trainer.max_epochs=2", "trainer.limit_train_batches=6",
]  # fmt: skip


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which samples are drawn once for all tests of this process."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def start(tmp_path: Path, data_dir: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `run.py` with overrides, in a process of its own; `out_dir` and `data_dir` are temporary folders."""

    def started(*overrides: str, script: str = "run.py") -> subprocess.Popen[str]:
        flags = [o for o in overrides if o.startswith("-") and script == "run.py"]
        places = [*flags, f"out_dir={tmp_path}", f"data_dir={data_dir}"] if script == "run.py" else []
        rest = [o for o in overrides if o not in flags]
        return subprocess.Popen(
            [sys.executable, str(ROOT / script), *places, *rest], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    return started


@pytest.fixture
def cli(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., tuple[int, str]]:
    """Run `run.py` to its end: exit code and everything it printed."""

    def finished(*overrides: str, script: str = "run.py") -> tuple[int, str]:
        process = start(*overrides, script=script)
        printed, _ = process.communicate(timeout=300)
        return process.returncode, printed

    return finished


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fashion run in a folder that was moved after it, without its data; `photos/` lies beside it."""
    home = tmp_path_factory.mktemp("moved")
    command = [sys.executable, str(ROOT / "run.py"), *TINY, f"out_dir={home / 'out'}", f"data_dir={home / 'data'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.move(only_run(home / "out"), home / "elsewhere")
    shutil.copytree(home / "data/samples/fascode/Test", home / "photos")
    shutil.rmtree(home / "data")
    return home / "elsewhere"


def only_run(out_dir: Path, experiment: str = "fashion_mtl") -> Path:
    """The one run folder below an output folder."""
    (folder,) = [path for path in (out_dir / experiment).iterdir() if path.is_dir()]
    return folder
