"""What a config takes from an earlier run: its encoder's config and its checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.compose import make_plan
from engine.earlier import checkpoint_of, encoder_of
from engine.suggest import composed


def plan(*overrides: str) -> dict[str, Any]:
    typed = ["experiment=fashion_frozen", *overrides]
    cfg = composed(typed)
    cfg.stages.fit.module.encoder = "${encoder_of:${encoder_from}}"
    return make_plan(cfg, typed, "fashion_frozen", Path("outputs/x"))


def test_the_encoder_is_described_by_the_run_that_made_it(run: Path) -> None:
    encoder = plan(f"encoder_from={run}")["stages"]["fit"]["module"]["encoder"]
    assert encoder["name"] == "test_resnet"
    assert encoder["weights"] == "none", "the weights come from the checkpoint"
    assert checkpoint_of(str(run)) == str(run / "fit.ckpt")
    assert encoder_of(str(run / "fit.ckpt")) == encoder


def test_each_mistake_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^encoder_from is not set: name a finished run"):
        plan()
    with pytest.raises(ValueError, match=r"^nowhere: there is no such run folder"):
        plan("encoder_from=nowhere")
    (tmp_path / "broken.ckpt").write_bytes(b"PK not a checkpoint")
    with pytest.raises(ValueError, match=r"broken\.ckpt cannot be read as a checkpoint"):
        encoder_of(str(tmp_path / "broken.ckpt"))
    content = torch.load(run / "fit.ckpt", weights_only=True)
    del content["stage"]["module"]["encoder"]
    torch.save(content, tmp_path / "blind.ckpt")
    with pytest.raises(ValueError, match=r"blind\.ckpt holds no encoder"):
        encoder_of(str(tmp_path / "blind.ckpt"))
    torch.save({"state_dict": {}}, tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="not a finished stage's checkpoint"):
        encoder_of(str(tmp_path / "plain.ckpt"))


def test_a_value_that_must_be_given_is_asked_for() -> None:
    typed = ["experiment=spu", "stages.pu.callbacks.warm_start.checkpoint=???"]
    with pytest.raises(ValueError, match="needs one: give it on the command line"):
        make_plan(composed(typed), typed, "spu", Path("outputs/x"))
