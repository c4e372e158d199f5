"""TripletEmbedder: its loss by hand, what judges it, what it was before training, and two processes against one."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml
from torch import Tensor, nn
from torch.testing import assert_close

from callbacks.freeze import Freeze, part
from datamodules.flowers import Flowers
from lightning_modules.nn.backbones import Encoder
from lightning_modules.nn.keyed import uniform
from lightning_modules.nn.retrieval import Rows, retrieval_scores
from lightning_modules.triplet_embedder import TripletEmbedder
from tests.conftest import ROOT
from tests.toy_fashion import optimiser, small_resnet, trainer

MINING = ["random", "semi_hard", "batch_hard"]


class Flat(nn.Module):
    """A trunk that hands the pixels through and counts them."""

    features = 12

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, image: Tensor) -> Tensor:
        self.seen += len(image)
        return image.flatten(1)


def technique(seed: int = 0, **changes: Any) -> TripletEmbedder:
    torch.manual_seed(seed)
    settings = {
        **{"encoder": Flat(), "widths": [8, 5], "batch_norm": False, "normalise": False, "distance": "euclidean"},
        **{"margin": 0.5, "mining": "random", "group": 4, "ks": [1, 5], "seed": 0, "optimiser": optimiser()},
    }
    return TripletEmbedder(**(settings | changes))


def batch(photos: int = 6, seed: int = 0, labels: bool = False, first: int = 0) -> dict[str, Any]:
    """Photos and then their positives, which resemble them."""
    random = torch.Generator().manual_seed(seed)
    anchors = torch.rand(photos, 3, 2, 2, generator=random)
    positives = (anchors + 0.3 * torch.rand(photos, 3, 2, 2, generator=random)).clamp(max=1)
    index = torch.arange(first, first + photos).repeat(2)
    found = {"image": torch.cat([anchors, positives]), "index": index, "positive": torch.arange(2 * photos) >= photos}
    return found | ({"labels": {"class": index % 3}} if labels else {})


def squared(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().sum())


def expected_losses(module: TripletEmbedder, rows: Tensor, places: list[int], epoch: int) -> list[float]:
    """The loss of each photo, by loops: rows are (n, 2, D)."""
    losses = []
    for at, place in enumerate(places):
        near = squared(rows[at, 0], rows[at, 1])
        others = [rows[other, side] for other in range(len(places)) if other != at for side in (0, 1)]
        apart = [squared(rows[at, 0], other) for other in others]
        beyond = [d for d in apart if d > near]
        draw = float(uniform(module.seed, epoch, torch.tensor([place]), 1))
        choice = {
            "random": apart[int(draw * len(apart))],
            "semi_hard": min(beyond) if beyond else max(apart),
            "batch_hard": min(apart),
        }
        losses.append(max(near - choice[module.mining] + module.margin, 0))
    return losses


@pytest.mark.parametrize("mining", MINING)
@pytest.mark.parametrize("normalise", [False, True])
def test_the_loss_by_loops_and_each_picture_passes_the_trunk_once(mining: str, normalise: bool) -> None:
    module, data = technique(mining=mining, normalise=normalise), batch(first=20)
    rows = torch.stack(module.embed(data).detach().chunk(2), 1)
    if normalise:
        assert_close(rows.norm(dim=2), torch.ones(6, 2))
    module.encoder.seen = 0
    found = module.step(data, "train")
    losses = expected_losses(module, rows, list(range(20, 26)), 0)
    assert module.encoder.seen == 12, "not three passes for anchor, positive and negative"
    assert found["loss"].item() == pytest.approx(sum(losses) / 6, rel=1e-4)
    assert found["active"].item() == pytest.approx(sum(loss > 0 for loss in losses) / 6)
    assert found["loss"].requires_grad
    assert not any(found[key].requires_grad for key in ("active", "near", "far"))


def test_cosine_distance_is_half_the_squared_one_of_unit_vectors() -> None:
    loss = technique(distance="cosine", margin=0.25).step(batch(), "train")["loss"]
    assert_close(2 * loss, technique(normalise=True, margin=0.5).step(batch(), "train")["loss"])


def test_random_negatives_are_drawn_anew_each_epoch_and_are_the_photos_own() -> None:
    module, data = technique(), batch(12)
    pairs = torch.stack(module.embed(data).chunk(2), 1)
    index = data["index"][:12]
    first, second = (module.triplets(pairs, index, epoch).negatives for epoch in (0, 1))
    assert not torch.equal(first, second)
    assert not any((each == torch.arange(12)).any() for each in (first, second))
    assert torch.equal(first, module.triplets(pairs, index, 0).negatives)


def test_labels_do_not_touch_training() -> None:
    assert_close(
        technique().step(batch(labels=True), "train")["loss"], technique().step(batch(labels=False), "train")["loss"]
    )


def judged(module: TripletEmbedder, photos: int, size: int, labels: bool = True) -> dict[str, float]:
    """The results of a validation in batches of a size."""
    data = batch(photos, labels=labels)
    module.eval()
    module.on_validation_epoch_start()
    with torch.no_grad():
        for rows in torch.arange(photos).flip(0).split(size):
            both = torch.cat([rows, rows + photos])
            part = {key: data[key][both] for key in ("image", "index", "positive")}
            module.step(part | ({"labels": {"class": data["labels"]["class"][both]}} if labels else {}), "val")
    return module.results("val")


@pytest.mark.parametrize("mining", MINING)
def test_evaluation_does_not_depend_on_its_batches(mining: str) -> None:
    module = technique(mining=mining)
    results = [judged(module, 23, size) for size in (23, 5, 1)]
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        assert results[1][key] == pytest.approx(value, rel=1e-6)
        assert results[2][key] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("mining", MINING)
def test_what_a_validation_says(mining: str) -> None:
    module, data = technique(mining=mining), batch(23, labels=True)
    results = judged(module, 23, 5)
    rows, labels = torch.stack(module.embed(data).detach().chunk(2), 1), data["labels"]["class"][:23]
    groups = module.groups(torch.arange(23))
    assert sorted(int(at) for group in groups for at in group) == list(range(23))
    assert {len(group) for group in groups} <= {4, 5}, "as many as a step has, and no lonely rest"
    losses, false = [], []
    for group in groups:
        losses += expected_losses(module, rows[group], group.tolist(), 0)
        negatives = module.triplets(rows[group], group, 0).negatives
        false += [bool(labels[at] == labels[group[n]]) for at, n in zip(group, negatives, strict=True)]
    assert results["val/loss"] == pytest.approx(sum(losses) / 23, rel=1e-4)
    assert results["val/false_negatives"] == pytest.approx(sum(false) / 23)
    for key, value in retrieval_scores(rows[:, 0], labels, [1, 5]).items():
        assert results[f"val/{key}"] == pytest.approx(value), "anchors among anchors"
    assert results["val/queries"] == 23


def test_without_labels_there_is_a_loss_and_nothing_else() -> None:
    assert judged(technique(), 9, 4, labels=False).keys() == {"val/loss"}
    rows = Rows(torch.randn(6, 2, 5), torch.tensor([0, 0, -1, -1, -1, -1]), torch.arange(6))
    figures = technique(group=6, mining="batch_hard").judge(rows)
    assert figures["queries"] == 2


def flowers(folder: Path, **changes: Any) -> Flowers:
    """Drawn flowers, small."""
    settings = yaml.safe_load((ROOT / "conf/datamodules/flowers.yaml").read_text(encoding="utf-8"))
    settings.pop("_target_")
    plain = {"root": folder, "seed": 0, "on_leak": "error", "on_bad_image": "error", "batch_size": 16, "image_size": 48}
    Flowers.draw_sample(folder)
    return Flowers(**{**settings, **plain, "val_share": 0.2, "test_share": 0.2, **changes})


class Watch(pl.Callback):
    """Keeps what each validation logged, and can end the fit in the middle."""

    def __init__(self, until: int | None = None) -> None:
        self.rows: list[dict[str, float]] = []
        self.until = until

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.rows.append({key: float(value) for key, value in trainer.callback_metrics.items()})
        if len(self.rows) == self.until:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "here.ckpt")


def resnet(**changes: Any) -> TripletEmbedder:
    return technique(encoder=small_resnet(), widths=[64, 32], batch_norm=True, normalise=True, group=16, **changes)


def test_it_learns_on_drawn_flowers_and_shows_what_it_was_before(data_dir: Path, tmp_path: Path) -> None:
    """Of the five nearest flowers half are of the same kind, where a third was before, and a fifth is chance."""
    watch, module = Watch(until=2), resnet(mining="semi_hard")
    untrained = {name: value.clone() for name, value in module.state_dict().items()}
    data = flowers(data_dir / "flowers")
    fitted = trainer(tmp_path, watch, max_epochs=15)
    fitted.fit(module, datamodule=data)
    before, after = watch.rows[0], watch.rows[-1]
    assert after["val/loss"] < 0.8 * before["val/untrained/loss"]
    best = max(row["val/precision@5"] for row in watch.rows)
    assert best > before["val/untrained/precision@5"] + 0.08
    assert after["val/mAP"] > before["val/untrained/mAP"] + 0.04
    for row in watch.rows:
        assert {key: row[key] for key in row if "untrained" in key} == {k: before[k] for k in row if "untrained" in k}
    again = resnet(mining="semi_hard")
    again.load_state_dict(untrained)
    found = trainer(tmp_path, max_epochs=1).validate(again, datamodule=data, verbose=False)[0]
    for key in ("val/loss", "val/precision@5", "val/mAP"):
        assert before[key.replace("val", "val/untrained")] == pytest.approx(found[key], rel=1e-5)
    assert fitted.test(module, datamodule=data, verbose=False)[0].keys() >= {"test/mAP", "test/untrained/mAP"}
    resumed, kept = resnet(mining="semi_hard"), Watch()
    trainer(tmp_path, kept, max_epochs=3).fit(resumed, datamodule=data, ckpt_path=tmp_path / "here.ckpt")
    assert {k: v for k, v in kept.rows[-1].items() if "untrained" in k or "encoder" in k} == {
        k: v for k, v in before.items() if "untrained" in k or "encoder" in k
    }


def test_judging_what_is_untrained_changes_nothing(data_dir: Path, tmp_path: Path) -> None:
    """Batch statistics, random state and modes are as if there had been no validation before training."""
    module, data = resnet(), flowers(data_dir / "flowers")
    seen: dict[str, Any] = {}

    class Look(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen["state"] = {k: v.clone() for k, v in pl_module.state_dict().items()}
            seen["random"], seen["modes"] = torch.get_rng_state(), [m.training for m in pl_module.modules()]

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            assert pl_module.before
            assert torch.equal(seen["random"], torch.get_rng_state())
            assert seen["modes"] == [m.training for m in pl_module.modules()]
            assert all(torch.equal(seen["state"][k], v) for k, v in pl_module.state_dict().items())
            trainer.should_stop = True

    trainer(tmp_path, Look(), max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(module, datamodule=data)
    assert seen


def test_maps_of_a_trunk_frozen_in_part_are_as_good_as_its_pictures() -> None:
    module = technique(encoder=small_resnet(), group=6)
    image = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    rest = {key: value for key, value in batch().items() if key != "image"}
    module.eval()
    assert module.encoder.split_after(["model.conv1", "model.bn1", "model.layer1"], 32)
    whole = module.step({**rest, "image": image}, "train")
    parted = module.step({**rest, "features": module.encoder.below(image)}, "train")
    assert_close(whole["loss"], parted["loss"])


def test_the_sources_resnet_trains_from_the_output_of_its_fifth_stages_first_block() -> None:
    experiment = yaml.safe_load((ROOT / "conf/experiment/triplet.yaml").read_text(encoding="utf-8"))
    names = experiment["stages"]["fit"]["callbacks"]["freeze"]["modules"]
    module = technique(encoder=Encoder("resnet50", "none"))
    for name in names:
        part(module, name).requires_grad_(False)
    trained = {name.rsplit(".", 2)[0] for name, p in module.encoder.named_parameters() if p.requires_grad}
    assert {name[: len("model.layer4.1")] for name in trained} == {"model.layer4.1", "model.layer4.2"}
    assert module.encoder.split_after([name.removeprefix("encoder.") for name in names], 64) == (2048, 2, 2)


def one_of_two(rank: int, folder: str) -> None:
    """Half of the batch on each process; what DDP would make of the gradients."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for mining in MINING:
        module, data = technique(mining=mining), batch(8)
        own = torch.arange(4 * rank, 4 * rank + 4)
        both = torch.cat([own, own + 8])
        found = module.step({key: data[key][both] for key in ("image", "index", "positive")}, "train")
        found["loss"].backward()
        for parameter in module.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= 2
        values = {key: value.detach() for key, value in found.items()}
        torch.save((values, [p.grad for p in module.parameters()]), f"{folder}/{mining}-{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path: Path) -> None:
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    for mining in MINING:
        module = technique(mining=mining)
        expected = module.step(batch(8), "train")
        expected["loss"].backward()
        assert expected["loss"] > 0
        for rank in range(2):
            values, gradients = torch.load(tmp_path / f"{mining}-{rank}.pt")
            for key in ("loss", "active", "near", "far"):
                assert_close(values[key], expected[key].detach())
            assert_close(gradients, [p.grad for p in module.parameters()])


def test_frozen_parts_and_a_schedule_train_under_the_trainer(data_dir: Path, tmp_path: Path) -> None:
    module = resnet(optimiser=optimiser(schedule="cosine", warmup_epochs=0.5))
    frozen = Freeze(["encoder.model.conv1", "encoder.model.layer1"])
    data = flowers(data_dir / "flowers")
    trainer(tmp_path, frozen, max_epochs=1, limit_train_batches=3).fit(module, datamodule=data)
    assert all(math.isfinite(value) for value in module.before.values())
    splits = [key.partition("/")[0] for key in module.before]
    assert splits == sorted(splits, reverse=True), "val, then test: several processes must not differ in the order"


def test_no_classes_are_answered() -> None:
    with pytest.raises(ValueError, match=r"use.py search RUN PHOTO --gallery FOLDER"):
        technique().answers(batch(), 5)


def test_what_gives_no_triplets_is_refused() -> None:
    with pytest.raises(ValueError, match="1 photo in a batch has no other"):
        technique(group=1)
    with pytest.raises(ValueError, match="1 photo in a batch has no other"):
        technique().step(batch(1), "train")
    with pytest.raises(ValueError, match="take a DataModule that gives them"):
        technique().step({key: value for key, value in batch().items() if key != "positive"}, "train")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mining": "hard"}, "mining='hard' is not one of: random, semi_hard, batch_hard"),
        ({"distance": "manhattan"}, "distance='manhattan' is not one of: euclidean, cosine"),
        ({"margin": 0}, "margin=0 must be above 0"),
        ({"widths": []}, "must be numbers from 1"),
        ({"widths": [0]}, "must be numbers from 1"),
        ({"ks": []}, "must be numbers from 1"),
        ({"ks": [0]}, "must be numbers from 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        technique(**changes)
