"""What the callbacks write, keep and refuse."""

import csv
import json
import math
import re

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from callbacks.best import Best
from callbacks.confusion import Confusion
from callbacks.freeze import Freeze
from callbacks.images import Images, surest
from callbacks.parameters import Parameters
from callbacks.predictions import Prediction, Predictions, gather, read
from callbacks.warm_start import WarmStart
from tests.toy_fashion import CLASSES, Toy, batch, technique, trainer

TASKS = list(CLASSES)


class Scripted(pl.Callback):
    """Makes each epoch's `val/top1` what the test wants, and notes which weights belonged to it."""

    def __init__(self, values):
        self.values, self.weights = values, []

    def setup(self, trainer, pl_module, stage):
        pl_module.results = lambda split: {f"{split}/top1": self.values[trainer.current_epoch]}

    def on_validation_end(self, trainer, pl_module):
        self.weights.append(pl_module.heads["a.b"].weight.detach().clone())


def fit_scripted(folder, values, mode="max", **changes):
    scripted, best = Scripted(values), Best("val/top1", mode)
    fitted = trainer(folder, scripted, best, max_epochs=len(values), **changes)
    fitted.fit(technique(), datamodule=Toy())
    return scripted, best


@pytest.mark.parametrize(
    ("values", "mode", "epoch"),
    [
        ([0.1, 0.5, 0.3], "max", 1),
        ([0.5, 0.5, 0.5], "max", 0),
        ([0.3, 0.1, 0.2], "min", 1),
        ([math.nan, 0.1, math.nan], "max", 1),
        ([0.2, math.nan, 0.1], "max", 0),
        ([math.nan, 0.1, 0.2], "min", 1),
    ],
)
def test_best_keeps_the_first_best_epoch_and_nan_never_wins(tmp_path, values, mode, epoch):
    scripted, best = fit_scripted(tmp_path, values, mode)
    assert best.best_epoch == epoch
    assert float(best.best_model_score) == pytest.approx(values[epoch])
    assert best.best_model_path == str(tmp_path / "best.ckpt")
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert torch.equal(checkpoint["state_dict"]["heads.a_b.weight"], scripted.weights[epoch])
    assert checkpoint["epoch"] == epoch
    assert "optimizer_states" not in checkpoint
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


def test_best_refuses_what_it_cannot_judge_by(tmp_path):
    with pytest.raises(ValueError, match="was not a number in any epoch"):
        fit_scripted(tmp_path, [math.nan, math.nan])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"best\.monitor=val/top2 was never logged; the nearest are: val/top1"):
        trainer(tmp_path, Best("val/top2", "max")).fit(technique(), datamodule=Toy())
    with pytest.raises(ValueError, match=r"best\.mode='up' is not one of: max, min"):
        Best("val/top1", "up")


def test_without_validation_no_epoch_is_chosen(tmp_path):
    best = Best("val/top1", "max")
    trainer(tmp_path, best, limit_val_batches=0).fit(technique(), datamodule=Toy())
    assert best.best_model_path == ""
    assert not list(tmp_path.iterdir())


def test_best_survives_a_resume_in_a_moved_folder(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    fitted = trainer(before, Scripted([0.9]), Best("val/top1", "max"), max_epochs=1)
    fitted.fit(technique(), datamodule=Toy())
    fitted.save_checkpoint(before / "last.ckpt")
    before.rename(after)
    weights = torch.load(after / "best.ckpt", weights_only=True)["state_dict"]
    best = Best("val/top1", "max")
    resumed = trainer(after, Scripted([0.9, 0.5]), best, max_epochs=2)
    resumed.fit(technique(1), datamodule=Toy(), ckpt_path=after / "last.ckpt", weights_only=True)
    assert (best.best_epoch, float(best.best_model_score)) == (0, pytest.approx(0.9))
    assert best.best_model_path == str(after / "best.ckpt")
    kept = torch.load(after / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(kept[name], weights[name]) for name in kept)


def test_warm_start_takes_exactly_what_it_names(tmp_path):
    donor, module = technique(1), technique(2)
    heads = {name: value.clone() for name, value in module.heads.state_dict().items()}
    torch.save({"state_dict": donor.state_dict(), "facts": {"classes": CLASSES}}, tmp_path / "stage.ckpt")
    WarmStart(str(tmp_path / "stage.ckpt"), ["encoder"]).setup(None, module, "fit")
    assert all(torch.equal(v, donor.encoder.state_dict()[k]) for k, v in module.encoder.state_dict().items())
    assert all(torch.equal(v, heads[k]) for k, v in module.heads.state_dict().items())


def test_warm_start_reads_lightning_checkpoints_and_renames(tmp_path):
    donor = technique(1)
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(donor, datamodule=Toy())
    fitted.save_checkpoint(tmp_path / "lightning.ckpt")
    module = technique(2, shared=False)
    names = {f"encoder.{slot}": "encoder" for slot in ("색조", "type_", "a_b")}
    WarmStart(str(tmp_path / "lightning.ckpt"), list(names), rename=names).setup(None, module, "fit")
    for trunk in module.encoder.values():
        assert all(torch.equal(v, donor.encoder.state_dict()[k]) for k, v in trunk.state_dict().items())


def test_warm_start_is_only_for_fits(tmp_path):
    WarmStart(str(tmp_path / "missing.ckpt"), ["encoder"]).setup(None, technique(), "test")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"missing\.ckpt: there is no such file; the stage that makes it must run first"),
        ("<html>", "cannot be read as a checkpoint"),
        ({"weights": 3}, "has no `state_dict`"),
        ({"state_dict": {"generator.w": torch.zeros(1)}}, r"has no 'encoder', it has: generator; is it one of another"),
        ("short", r"'encoder' does not fit: \d+ of its \d+ tensors do, but model\.conv1\.0\.weight is missing there"),
        ("long", r"'encoder' does not fit: .* but extra is unknown here"),
        ("wide", r"model\.conv1\.0\.weight is \(16, 3, 7, 7\) there and \(16, 3, 3, 3\) here"),
    ],
)
def test_warm_start_refuses_in_one_sentence(tmp_path, content, sentence):
    path, tensors = tmp_path / "missing.ckpt", technique().state_dict()
    if content == "short":
        del tensors["encoder.model.conv1.0.weight"]
    elif content == "long":
        tensors["encoder.extra"] = torch.zeros(1)
    elif content == "wide":
        tensors["encoder.model.conv1.0.weight"] = torch.zeros(16, 3, 7, 7)
    if content == "<html>":
        path.write_text(content)
    elif content is not None:
        torch.save({"state_dict": tensors} if isinstance(content, str) else content, path)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        WarmStart(str(path), ["encoder"]).setup(None, technique(), "fit")


def test_warm_start_of_an_unknown_part_offers_the_nearest(tmp_path):
    torch.save({"state_dict": technique().state_dict()}, tmp_path / "stage.ckpt")
    with pytest.raises(ValueError, match=r"has no module 'encodr'; the nearest are: encoder"):
        WarmStart(str(tmp_path / "stage.ckpt"), ["encodr"]).setup(None, technique(), "fit")


def test_files_of_a_test_agree_with_each_other_and_with_the_module(tmp_path):
    module, data = technique(), Toy(test=23)
    callbacks = [Predictions(), Images(3), Confusion()]
    logged = trainer(tmp_path, *callbacks).test(module, datamodule=data, verbose=False)[0]
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"test/{index:03d} 사진.jpg" for index in range(23)]
    confusion = json.loads((tmp_path / "confusion.json").read_text(encoding="utf-8"))["test"]
    for task, names in CLASSES.items():
        assert confusion[task]["classes"] == names
        for i, truth in enumerate(names):
            for j, guess in enumerate(names):
                found = sum(row[task] == truth and row[f"{task}_guess"] == guess for row in rows)
                assert confusion[task]["matrix"][i][j] == found
        known = [row for row in rows if row[task]]
        right = sum(row[task] == row[f"{task}_guess"] for row in known)
        assert logged[f"test/{task}/top1"] == pytest.approx(right / len(known))
    assert sum(row["type"] == "" for row in rows) == sum(s["labels"]["type"] == -1 for s in data.splits["test"])
    check_examples(tmp_path, rows, data)


def check_examples(folder, rows, data):
    examples = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    assert 0 < len(examples) <= 6
    for example in examples:
        index = int(re.search(r"(\d+)\.png", example["image"])[1])
        assert example["name"] == rows[index]["name"]
        pixels = torch.from_numpy(np.array(Image.open(folder / example["image"]))).permute(2, 0, 1)
        assert torch.equal(pixels, data.picture("test", index))
        right = [answer["truth"] == answer["guess"] for answer in example["answers"] if answer["truth"] is not None]
        assert example["right"] == all(right)
        for answer in example["answers"]:
            assert answer["guess"] == rows[index][f"{answer['task']}_guess"]
            assert 0 < answer["confidence"] <= 1


def test_surest_right_and_wrong_ones_are_shown():
    random = torch.Generator().manual_seed(0)
    rows = {}
    for index in range(200):
        truth, guess = torch.randint(-1, 3, (2,), generator=random).tolist()
        sure = float(torch.rand((), generator=random))
        rows[index] = {"a": Prediction(truth, max(guess, 0), sure), "b": Prediction(-1, 0, 1.0)}
    chosen = surest(rows, 4)
    for right in (True, False):
        kind = {i: row["a"] for i, row in rows.items() if row["a"].truth >= 0 and row["a"].right is right}
        expected = sorted(kind, key=lambda i: -kind[i].confidence)[:4]
        assert [i for i in chosen if chosen[i]["a"].right is right] == expected
    assert len(chosen) == 8


def test_submission_is_in_the_leaderboards_form(tmp_path):
    module, data = technique(), Toy()
    trainer(tmp_path, Predictions("image_name")).predict(module, datamodule=data, return_predictions=False)
    with (tmp_path / "submission.csv").open(encoding="utf-8", newline="") as file:
        heading, *rows = csv.reader(file)
    assert heading == ["image_name", *TASKS]
    with torch.no_grad():
        logits = module.eval()(torch.stack([sample["image"] for sample in data.splits["predict"]]))
    expected = [
        [f"predict/{i:03d} 사진.jpg", *(str(int(logits[task][i].argmax())) for task in TASKS)] for i in range(12)
    ]
    assert rows == expected


def test_parameter_table_adds_up(tmp_path):
    module = technique()
    trainer(tmp_path, Freeze(["encoder"]), Parameters(), max_epochs=1).fit(module, datamodule=Toy())
    encoder, heads = json.loads((tmp_path / "parameters.json").read_text(encoding="utf-8"))
    assert (encoder["module"], heads["module"]) == ("encoder", "heads")
    assert encoder["trainable"] == heads["frozen"] == 0
    assert encoder["frozen"] + heads["trainable"] == sum(parameter.numel() for parameter in module.parameters())
    layers = [layer for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert encoder["normalisation_locked"] == len(layers) > 0
    trainer(tmp_path, Parameters(), max_epochs=1).fit(technique(), datamodule=Toy())
    encoder, heads = json.loads((tmp_path / "parameters.json").read_text(encoding="utf-8"))
    assert encoder["frozen"] == encoder["normalisation_locked"] == 0


def test_wandb_gets_pictures_and_matrices(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="tests")
    trainer(tmp_path, Images(2), Confusion(), logger=logger).test(technique(), datamodule=Toy(), verbose=False)
    wandb.finish(0)
    tables = {
        path.name.split("_")[0]: json.loads(path.read_text())
        for path in tmp_path.glob("wandb/*/files/media/table/**/*.json")
    }
    assert tables["examples"]["columns"] == ["image", "name", "right", "task", "truth", "guess", "confidence"]
    assert len(tables["examples"]["data"]) == 3 * len(list(tmp_path.glob("examples/*.png"))) > 0
    assert tables["confusion"]["columns"] == ["truth", "guess", "count"]


def one_of_two(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    module, whole = technique().eval(), batch(9)
    rows = torch.arange(rank, 9, 2)
    labels = {task: values[rows] for task, values in whole["labels"].items()}
    mine = {"image": whole["image"][rows], "labels": labels, "index": rows}
    with torch.no_grad():
        everything = gather(read(module.step(mine, "test")))
    torch.save([(i, {t: vars(p) for t, p in row.items()}) for i, row in everything.items()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_predictions_of_two_processes_are_those_of_one(tmp_path):
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    with torch.no_grad():
        alone = read(technique().eval().step(batch(9), "test"))
    for rank in range(2):
        gathered = torch.load(tmp_path / f"{rank}.pt")
        assert [index for index, _ in gathered] == list(alone) == list(range(9))
        for index, row in gathered:
            for task, answer in row.items():
                assert (answer["truth"], answer["guess"]) == (alone[index][task].truth, alone[index][task].guess)
                assert answer["confidence"] == pytest.approx(alone[index][task].confidence, abs=1e-6)


def test_confusion_says_what_it_needs(tmp_path):
    bare = technique()
    bare.metrics["test"] = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"callbacks.confusion: FashionMTL has no metrics\['test'\]\['confusion'\]"):
        trainer(tmp_path, Confusion()).test(bare, datamodule=Toy(), verbose=False)
