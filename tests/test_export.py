"""`use.py export`: a file that answers as the checkpoint does, for every technique, and what one must know of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hydra.utils import instantiate

from engine.export import Deployed, classes_of, write_folder
from engine.stage import build_data, draw_sample, fill
from tests.test_config import plan_of
from tests.test_experiments import small
from use import command_line


def test_a_run_is_exported_and_checked_on_photos(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = run.parent / "photos", tmp_path / "onnx"
    assert command_line(["export", str(run), str(photos), "--most", "5", "--out", str(out)]) == 0
    assert "on 5 photos" in capsys.readouterr().out
    told = json.loads((out / "model.json").read_text(encoding="utf-8"))
    assert [output["name"] for output in told["outputs"]] == ["Daily", "Gender", "Embellishment"]
    assert told["input"]["settings"]["fit"] == "letterbox"
    assert told["checked"] | {"largest_difference": 0} == {"photos": 5, "largest_difference": 0, "same_answer": 1.0}
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        pixels = np.zeros((count, 3, 32, 32), dtype=np.uint8)
        daily, *_ = session.run(None, {"image": pixels})
        assert daily.shape == (count, len(told["outputs"][0]["classes"]))
        assert daily.sum(1) == pytest.approx(1, abs=1e-5)


def test_without_photos_it_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["export", str(run)]) == 1
    assert "the run's photos are not there any more" in capsys.readouterr().err
    assert command_line(["export", str(run), str(run.parent / "photos"), "--most", "0"]) == 1
    assert "--most=0 must be 1 or more" in capsys.readouterr().err


def built(experiment: str, stage: str, data_dir: Path, run: Path) -> tuple[dict[str, Any], torch.nn.Module, Any]:
    """A stage's untrained module and its data, on samples."""
    overrides = [*small(experiment, run)[1:], f"data_dir={data_dir}"]
    config = plan_of(experiment, *overrides)["stages"][stage]
    draw_sample(config["data"])
    data = build_data(config["data"])
    module = instantiate(fill(config["module"], data.facts), _convert_="all").eval()
    return {"experiment": experiment, "stage": config}, module, data


@pytest.mark.parametrize(
    ("experiment", "stage", "outputs"),
    [
        ("spu", "pu", ["tags"]),
        ("simclr", "pretrain", ["class"]),
        ("simclr", "probe", ["class"]),
        ("triplet", "fit", ["embedding"]),
        ("stn_gan", "gan", ["class"]),
        ("stn_gan", "finetune", ["class"]),
    ],
)
def test_every_technique_has_a_form(
    experiment: str, stage: str, outputs: list[str], data_dir: Path, run: Path, tmp_path: Path
) -> None:
    content, module, data = built(experiment, stage, data_dir, run)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    done = write_folder(tmp_path, content, module, data, [{"image": batch["image"][:4]}])
    assert done.passed
    told = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert [output["name"] for output in told["outputs"]] == outputs


def test_a_file_that_answers_otherwise_is_not_called_done(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("engine.export.TOLERANCE", -1.0)
    command = ["export", str(run), str(run.parent / "photos"), "--most", "2", "--out", str(tmp_path)]
    assert command_line(command) == 1
    assert "away from the checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "model.json").exists()
    assert not (tmp_path / "model.onnx").exists()


def test_a_technique_without_classes_gives_its_embedding() -> None:
    class Embedder(torch.nn.Module):
        def embed(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return batch["image"].float().mean((2, 3))

    assert classes_of(Embedder()) == {}
    (embedding,) = Deployed(Embedder(), [])(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert embedding.shape == (2, 3)
