"""Margins of whole runs: two processes write what one writes, a killed and resumed run what an uninterrupted one."""

import csv
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest

from tests.conftest import TINY, only_run
from tests.test_resume import SLOW, stop_mid_epoch

MARGINS = [
    "stages.fit.data.labels.threshold=0",
    "+stages.fit.callbacks.margins={_target_: callbacks.margins.Margins, form: logits, rule: threshold, "
    "percentile: 99, most: 0.5, epochs: null, earlier: null, pictures: 2}",
]


def areas(run: Path) -> dict[tuple[str, str, str], float]:
    with (run / "fit/margins.csv").open(encoding="utf-8", newline="") as file:
        return {(row["photo"], row["task"], row["label"]): float(row["aum"]) for row in csv.DictReader(file)}


def test_two_processes_record_as_one(cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """With a network that has no BatchNorm, whose statistics are each process's own."""
    short = ["stages.fit.module.encoder.name=test_vit", "stages.fit.data.image_size=160", "trainer.max_epochs=2"]
    found = []
    for devices in (1, 2):
        where = [f"trainer.devices={devices}", f"out_dir={tmp_path / str(devices)}"]
        code, printed = cli(*TINY, *MARGINS, *short, "trainer.limit_train_batches=3", *where)
        assert code == 0, printed
        found.append(areas(only_run(tmp_path / str(devices))))
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_killed_and_resumed_records_as_uninterrupted(
    number: signal.Signals, start: Callable[..., Popen[str]], cli: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [*TINY, *MARGINS, SLOW % (tmp_path / "sign"), "checkpoint_every=0"]
    assert cli(*command, f"out_dir={whole}")[0] == 0
    stop_mid_epoch(start, broken, number, [*command, f"out_dir={broken}"])
    code, printed = cli(*command, f"out_dir={broken}", "resume=latest")
    assert code == 0, printed
    runs = only_run(whole), only_run(broken)
    for name in ("margins.csv", "kept.csv", "margins.json", "review.json"):
        assert (runs[0] / "fit" / name).read_bytes() == (runs[1] / "fit" / name).read_bytes(), name


def test_kept_features_record_as_photos(cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """A frozen trunk's features are computed once and trained on in groups of batches: the margins are the same."""
    frozen = ["experiment=fashion_frozen", *TINY[1:], "stages.fit.data.augment=null", "trainer.limit_train_batches=1.0"]
    found = []
    for features in ("on", "off"):
        code, printed = cli(*frozen, *MARGINS, f"stages.fit.features={features}", f"out_dir={tmp_path / features}")
        assert code == 0, printed
        found.append(areas(only_run(tmp_path / features, "fashion_frozen")))
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-4)
