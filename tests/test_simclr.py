"""SimCLR: its loss by hand, views that have a key, read-outs that teach nothing, and two processes against one."""

import json
import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from callbacks.pictures import sheet
from callbacks.views import Views as ViewPictures
from engine.check import check_targets
from engine.record import read_rows
from engine.suggest import composed
from lightning_modules.nn.backbones import Encoder
from lightning_modules.nn.representation import knn_top1
from lightning_modules.nn.views import Views
from lightning_modules.simclr import FIXED, SimCLR
from tests.test_config import plan_of
from tests.test_resume import until
from tests.toy_fashion import optimiser, trainer
from tests.toy_pictures import CLASSES, KINDS, Pictures, pictures, rows

VIEWS = {
    **{"side": 32, "area": [0.4, 1.0], "aspect": [0.75, 4 / 3], "flip": 0.5, "jitter": 0.8, "brightness": 0.4},
    **{"contrast": 0.4, "saturation": 0.4, "hue": 0.5, "grey": 0.2, "blur": 0.3, "kernel": 3, "sigma": [0.1, 1.0]},
}


class Plain(nn.Module):
    """A small encoder without batch normalisation, so that no image knows of its batch."""

    features = 12

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=4), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.Tanh()
        )

    def forward(self, image):
        return self.model(image.float()).mean((2, 3))


def simclr(**changes):
    torch.manual_seed(0)
    settings = {"projector": [16, 8], "projector_norm": False, "temperature": 0.2, "precision": "float32"}
    settings |= {"joint_views": True, "classes": CLASSES, "task": None, "neighbours": 5, "seed": 3}
    settings |= {"encoder": Plain(), "views": Views(**VIEWS), "optimiser": optimiser()} | changes
    return SimCLR(**settings)


def small_resnet():
    return Encoder("test_resnet", "none")


def loss_by_hand(first, second, temperature):
    """The mean over all views of −log of the partner's share."""
    views = torch.cat([first, second])
    views = [view / view.norm() for view in views]
    losses = []
    for a, anchor in enumerate(views):
        partner = (a + len(first)) % len(views)
        shares = [((anchor @ views[b]) / temperature).exp() for b in range(len(views)) if b != a]
        losses.append(-(((anchor @ views[partner]) / temperature).exp() / sum(shares)).log())
    return sum(losses) / len(losses)


def test_the_loss_is_that_of_the_paper_on_the_views_of_the_epoch():
    module, batch = simclr(temperature=0.5), pictures(6)
    first, second = (module.projector(module.encoder(view)) for view in module.draw_views(batch, 0))
    outputs = module.step(batch, "train")
    assert_close(outputs["loss"], loss_by_hand(first, second, 0.5), rtol=1e-5, atol=1e-6)
    assert {key for key, value in outputs.items() if value.ndim == 0} == {"loss", "readout/loss"}


def test_a_view_depends_on_seed_epoch_and_place_alone():
    module, batch = simclr(), pictures(9)
    state = torch.get_rng_state()
    first, second = module.draw_views(batch, 0)
    assert not torch.equal(first, second)
    shuffled = torch.tensor([7, 2, 4])
    for whole, part in zip((first, second), module.draw_views(rows(batch, shuffled), 0), strict=True):
        assert_close(part, whole[shuffled], rtol=0, atol=1e-6)
    for others in (module.draw_views(batch, 1), simclr(seed=4).draw_views(batch, 0)):
        assert (others[0] - first).abs().amax((1, 2, 3)).min() > 0.01
    module.step(batch, "train")
    module.step(batch, "val")
    assert torch.equal(torch.get_rng_state(), state), "no generator has a state that a resume could miss"


def test_views_in_one_pass_share_the_statistics_of_batch_normalisation():
    batch = pictures(8)
    losses, passes = {}, {}
    for joint in (True, False):
        normed = simclr(encoder=small_resnet(), joint_views=joint)
        plain = simclr(joint_views=joint)
        losses[joint] = [module.step(batch, "train")["loss"].item() for module in (plain, normed)]
        passes[joint] = normed.encoder.model.conv1[1].num_batches_tracked.item()
    assert losses[True][0] == pytest.approx(losses[False][0], rel=1e-6)
    assert losses[True][1] != pytest.approx(losses[False][1], rel=1e-4)
    assert passes == {True: 1, False: 2}


def test_the_readout_never_reaches_the_encoder():
    batch = pictures(12, unlabelled=0.5)
    read, silent = simclr(), simclr(classes=None)
    silent.load_state_dict(read.state_dict(), strict=False)
    losses = [module.step(batch, "train")["loss"] for module in (read, silent)]
    for loss in losses:
        loss.backward()
    assert losses[0] == losses[1], "the loss that is logged and judged is the contrastive one"
    for part in ("encoder", "projector"):
        pairs = zip(getattr(read, part).parameters(), getattr(silent, part).parameters(), strict=True)
        assert all(torch.equal(ours.grad, theirs.grad) for ours, theirs in pairs)
    assert read.readout.weight.grad.abs().sum() > 0


def test_a_missing_label_is_read_nowhere():
    batch = pictures(24, unlabelled=0.5)
    known = rows(batch, batch["labels"]["class"] >= 0)
    module, without = simclr().eval(), simclr().eval()
    features = module.encoder(torch.cat(module.draw_views(known, 0)))
    expected = nn.functional.cross_entropy(module.readout(features), known["labels"]["class"].repeat(2))
    assert_close(module.step(batch, "train")["readout/loss"], expected.detach())
    without.step(known, "train")
    for each, given in ((module, batch), (without, known)):
        each.step(given, "val")
    ours, theirs = module.results("val"), without.results("val")
    assert [ours[key] for key in ("val/knn", "val/linear")] == [theirs[key] for key in ("val/knn", "val/linear")]
    assert ours["val/loss"] != theirs["val/loss"], "an unlabelled image is as good as any for the loss"


@pytest.mark.parametrize("known", ["data", "labels of validation", "nothing"])
def test_without_labels_there_is_nothing_to_read_out(known):
    module = simclr(classes=None if known == "nothing" else CLASSES)
    train, held_out = pictures(8, unlabelled=1.0), pictures(20, seed=1)
    if known != "labels of validation":
        held_out["labels"]["class"].fill_(-1)
    if known == "nothing":
        del train["labels"], held_out["labels"]
    outputs = module.step(train, "train")
    outputs["loss"].backward()
    assert outputs["loss"].isfinite()
    module.step(held_out, "val")
    monitors = {"val/loss", "val/spread", "val/effective_rank", "val/alignment", "val/uniformity"}
    assert module.results("val").keys() == monitors | ({"val/knn"} if known == "labels of validation" else set())
    if known == "nothing":
        with pytest.raises(ValueError, match="no names to give"):
            module.answers(held_out, 1)


def test_results_do_not_depend_on_batches_and_are_those_of_all_rows(monkeypatch):
    monkeypatch.setattr("lightning_modules.simclr.CHUNK", 16)
    module, whole = simclr().eval(), pictures(45, unlabelled=0.2)
    module.step(pictures(8), "train")  # so that the readout is worth a look
    found = []
    for size in (45, 7):
        module.reset_metrics("val")
        for chosen in torch.randperm(45).split(size):
            module.step(rows(whole, chosen), "val")
        found.append(module.results("val"))
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    with torch.no_grad():
        features = module.encoder(whole["image"])
        first, second = (module.projector(module.encoder(view)) for view in module.draw_views(whole, FIXED))
    losses = [15 * loss_by_hand(a, b, 0.2) for a, b in zip(first.split(15), second.split(15), strict=True)]
    labels = whole["labels"]["class"]
    guesses = module.readout(features).argmax(1)
    assert found[0]["val/loss"] == pytest.approx(sum(losses).item() / 45, abs=1e-5)
    assert found[0]["val/knn"] == knn_top1(features, labels, 5)
    assert found[0]["val/linear"] == pytest.approx((guesses == labels)[labels >= 0].float().mean().item())


def test_accumulated_gradients_do_not_enlarge_the_batch(tmp_path):
    class Gradient(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.found = module.projector[0].weight.grad.clone()

    whole, halves, gradient = pictures(16), (slice(8), slice(8, 16)), Gradient()
    loader = [rows(whole, half) for half in halves]
    fitted = trainer(tmp_path, gradient, max_epochs=1, accumulate_grad_batches=2, limit_val_batches=0)
    fitted.fit(simclr(), *[DataLoader(loader, batch_size=None)] * 2)
    expected = {}
    for name, batches in (("halves", loader), ("whole", [whole])):
        module = simclr()
        for batch in batches:
            (module.step(batch, "train")["loss"] / len(batches)).backward()
        expected[name] = module.projector[0].weight.grad
    assert_close(gradient.found, expected["halves"], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(expected["halves"], expected["whole"], rtol=0.01)


def test_what_is_not_a_number_shows_in_the_loss():
    class Broken(nn.Module):
        slots = 1

        def forward(self, image, draws):
            return torch.where(torch.arange(len(image)) == 2, torch.nan, 0.5)[:, None, None, None].expand(-1, 3, 32, 32)

    for precision in ("float32", "bfloat16"):
        outputs = simclr(views=Broken(), precision=precision).step(pictures(6), "train")
        assert outputs["loss"].isnan(), "the engine stops at the first such loss"
    module = simclr(views=Broken())
    module.step(pictures(6), "val")
    results = module.results("val")
    assert math.isnan(results["val/loss"])
    assert math.isnan(results["val/effective_rank"])


def test_it_learns_what_a_random_encoder_does_not_show(tmp_path):
    views = Views(**(VIEWS | {"area": [0.6, 1.0], "blur": 0.0}))
    layers = {"encoder": small_resnet(), "projector": [64, 32], "projector_norm": True}
    module = simclr(views=views, **layers, optimiser=optimiser(lr=5e-3))
    data = Pictures(train=896, held_out=280, batch_size=64, unlabelled=0.5)
    fitted = trainer(tmp_path, max_epochs=14, limit_val_batches=0)
    before = fitted.test(module, datamodule=data, verbose=False)[0]
    fitted.fit(module, datamodule=data)
    after = fitted.test(module, datamodule=data, verbose=False)[0]
    assert after["test/knn"] > before["test/knn"] + 0.25, (before, after)
    assert after["test/linear"] > 0.4, after
    assert after["test/loss"] < before["test/loss"] - 1
    assert after["test/spread"] > 0.7


def test_a_batch_of_one_is_refused_before_the_fit(tmp_path):
    data = Pictures(batch_size=1)
    with pytest.raises(ValueError, match=r"batch_size=1: .* give two or more"):
        trainer(tmp_path).fit(simclr(), datamodule=data)
    module = simclr()
    with pytest.raises(ValueError, match="one"):
        module.step(pictures(1), "train")
    module.step(pictures(1), "val")
    assert module.results("val") == {}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temperature": 0.0}, r"temperature=0\.0"),
        ({"temperature": -1.0}, r"temperature=-1\.0"),
        ({"precision": "float16"}, r"precision='float16'"),
        ({"projector": [16, 0]}, r"projector=\[16, 0\]"),
        ({"neighbours": 0}, "neighbours=0"),
        ({"task": "kind"}, r"task='kind': the data have no such task"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        simclr(**changes)


def test_features_that_were_kept_have_no_views():
    batch = {**pictures(4), "features": torch.zeros(4, 12)}
    del batch["image"]
    with pytest.raises(ValueError, match="features=off"):
        simclr().step(batch, "train")


def test_the_readout_answers():
    module, batch = simclr().eval(), pictures(4)
    probabilities = module.readout(module.encoder(batch["image"])).softmax(1)
    for row, answer in zip(
        probabilities, module.answers({"image": batch["image"], "index": batch["index"]}, 2), strict=True
    ):
        values, ids = row.topk(2)
        assert answer == {"class": [(KINDS[i], pytest.approx(v)) for i, v in zip(ids, values.tolist(), strict=True)]}
    assert_close(module.embed(batch), module.encoder(batch["image"]))


def test_the_config_builds_it():
    config = OmegaConf.to_container(composed(["+lightning_modules@stages.fit.module=simclr"]).stages.fit.module)
    module = instantiate(config | {"classes": CLASSES, "seed": 0}, _convert_="all")
    assert module.readout.weight.shape == (len(KINDS), module.encoder.features)


def test_the_reference_never_looks_at_stored_statistics():
    node = plan_of("simclr_reference")["stages"]["pretrain"]["module"]["encoder"]
    encoder, images = instantiate(node, _convert_="all").eval(), pictures(4)["image"]
    assert not torch.allclose(encoder(images)[:2], encoder(images[:2]), rtol=0.01)


@pytest.mark.parametrize("data", ["cifar10", "fascode"])
def test_other_data_take_the_place_of_stl10(data):
    plan = plan_of("simclr", *(f"datamodules@stages.{name}.data={data}" for name in ("pretrain", "probe")))
    for name, stage in plan["stages"].items():
        check_targets(stage["module"], name)
        check_targets(stage["data"], name)


def test_the_views_are_shown_as_the_first_epoch_sees_them(tmp_path):
    module, data = simclr(), Pictures(train=48)
    trainer(tmp_path, ViewPictures(5), max_epochs=1).fit(module, datamodule=data)
    (entry,) = json.loads((tmp_path / "pictures/views.json").read_text(encoding="utf-8"))
    shown = np.asarray(Image.open(tmp_path / entry["image"]).convert("RGB"))
    index = torch.tensor([0, 11, 23, 35, 47])
    image = data.whole["train"]["image"][index]
    views = module.draw_views({"image": image, "index": index}, 0)
    rows_of_it = [image, *((view * 255).round().to(torch.uint8) for view in views)]
    assert np.array_equal(shown, np.asarray(sheet([list(row) for row in rows_of_it]).convert("RGB")))


TINY = [
    "experiment=simclr", "sample=true", "logger=none", "only=[pretrain]", "trainer.accelerator=cpu",
    "trainer.precision=32-true", "trainer.max_epochs=2", "trainer.limit_train_batches=5", "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1", "stages.pretrain.data.batch_size=16", "stages.pretrain.module.views.side=32",
    "stages.pretrain.module.views.kernel=3",
]  # fmt: skip


def losses(folder):
    """The loss of each step of the one run below a folder."""
    (path,) = folder.glob("simclr/*/pretrain/metrics.jsonl")
    return [(row["step"], row["train/loss"]) for row in read_rows(path) if "train/loss" in row]


@pytest.mark.slow
def test_two_processes_train_as_one(cli, tmp_path):
    """Through samplers, DDP and the optimiser: with a network that has no batch normalisation."""
    vit = ["stages.pretrain.module.encoder.name=test_vit", "stages.pretrain.module.encoder.options={img_size: 32}"]
    short = [*TINY, *vit, "stages.pretrain.module.projector_norm=false", "trainer.max_epochs=1"]
    for devices in (1, 2):
        code, printed = cli(*short, f"trainer.devices={devices}", f"out_dir={tmp_path / str(devices)}")
        assert code == 0, printed
    one, two = (dict(losses(tmp_path / devices)) for devices in "12")
    assert len(one) == 5
    assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch_and_resumed_equals_uninterrupted(start, cli, tmp_path):
    slow = "+stages.pretrain.callbacks.slow={_target_: tests.toys.Slow, seconds: 0.2, sign: %s}" % (tmp_path / "sign")
    command = [*TINY, "stages.pretrain.module.encoder.name=test_resnet", slow, "checkpoint_every=0"]
    code, printed = cli(*command, f"out_dir={tmp_path / 'whole'}")
    assert code == 0, printed
    broken = tmp_path / "broken"
    process = start(*command, f"out_dir={broken}")
    until(
        lambda: (
            process.poll() is not None or (list(broken.glob("simclr/*/pretrain/*.jsonl")) and len(losses(broken)) > 6)
        )
    )
    process.kill()
    process.communicate()
    assert 6 < len(losses(broken)) < 10
    code, printed = cli(*command, f"out_dir={broken}", "resume=latest")
    assert code == 0, printed
    assert losses(broken) == losses(tmp_path / "whole"), "each step once, with the same loss to the last bit"


def one_of_two(rank, folder):
    """What each process of the test below does: its share of a batch, then its share of an evaluation."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    module = simclr()
    outputs = module.step(rows(pictures(12, unlabelled=0.4), slice(6 * rank, 6 * rank + 6)), "train")
    outputs["loss"].backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    for gradient in gradients:
        dist.all_reduce(gradient)
    loss = outputs["loss"].detach()
    dist.all_reduce(loss)
    for chosen in torch.arange(rank, 27, 2).split(4):
        module.step(rows(pictures(27, seed=5, unlabelled=0.3), chosen), "test")
    found = {"gradients": [g / 2 for g in gradients], "loss": loss / 2, "results": module.results("test")}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    two = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    module = simclr()
    loss = module.step(pictures(12, unlabelled=0.4), "train")["loss"]
    loss.backward()
    assert_close(two[0]["loss"], loss.detach(), rtol=1e-5, atol=1e-6)
    for parameter, gradient in zip(module.parameters(), two[0]["gradients"], strict=True):
        assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
    for chosen in torch.arange(27).split(9):
        module.step(rows(pictures(27, seed=5, unlabelled=0.3), chosen), "test")
    assert two[0]["results"] == two[1]["results"]
    assert two[0]["results"] == pytest.approx(module.results("test"), abs=1e-6)
