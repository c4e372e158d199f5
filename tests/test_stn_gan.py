"""STNGAN: losses by hand and by descent, the networks' turns, what is refused, and when it says that it collapsed."""

import copy
import json
import logging
import math
import os
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader

from callbacks.deformations import Deformations, as_bytes, chosen
from callbacks.freeze import Freeze, fingerprint
from callbacks.warm_start import WarmStart
from datamodules.cifar10 import CIFAR10
from engine.hooks import LastCheckpoint, RandomState, StepLog
from engine.loggers import MetricsFile
from engine.progress import Progress
from engine.record import read_rows
from engine.session import settle
from lightning_modules.classifier import Classifier
from lightning_modules.nn.backbones import Encoder
from lightning_modules.nn.collapse import sentence
from lightning_modules.nn.gan import (
    Discriminator,
    Objective,
    adversarial_loss,
    discriminator_loss,
    entropy,
    max_entropy_loss,
    true_probability,
)
from lightning_modules.nn.keyed import uniform
from lightning_modules.nn.spatial import Generated, SpatialTransformer
from lightning_modules.stn_gan import STNGAN
from tests.conftest import ROOT
from tests.test_config import plan_of
from tests.toy_fashion import optimiser, trainer
from tests.toy_pictures import CLASSES, pictures, rows

OBJECTIVE = {
    **{"entropy_weight": 2.0, "entropy_form": "plain", "game": "minimax", "budget": None, "distance": None},
    **{"distance_weight": 1.0, "guard": None, "diversity": 0.0},
}
GENERATOR = {"width": 4, "noise": 0, "ranges": None, "start": 0.0, "padding": "zeros"}


def generator(**changes):
    return SpatialTransformer(**(GENERATOR | changes))


def technique(seed=0, make=None, objective=None, **changes):
    """A small STNGAN; its classifier is timm's smallest ResNet, which has batch normalisation."""
    torch.manual_seed(seed)
    settings = {
        "encoder": Encoder("test_resnet", "none"), "classes": CLASSES, "task": None, "discriminator": Discriminator(4),
        "gradient_clip": None, "seed": 0, "optimiser": optimiser(name="adam", lr=1e-3, weight_decay=0.0),
        "discriminator_optimiser": optimiser(name="sgd", lr=1e-2, weight_decay=0.0, momentum=0.0),
    }  # fmt: skip
    settings["generator"] = generator(**(make or {}))
    settings["objective"] = Objective(**(OBJECTIVE | (objective or {})))
    return STNGAN(**(settings | changes))


def frozen(module):
    """The technique with its classifier as the freeze callback leaves it."""
    for part in (module.encoder, module.head):
        part.requires_grad_(False).eval()
    return module


class Toy(pl.LightningDataModule):
    """Drawn shapes, the same batches of 32 in every epoch; of several processes each has its part of every batch."""

    def __init__(self, train=64, held_out=40, rank=0, world=1):
        super().__init__()
        self.whole = {"train": pictures(train, 1), "val": pictures(held_out, 2), "test": pictures(held_out, 3)}
        self.rank, self.world = rank, world

    def batches(self, split):
        parts = torch.arange(len(self.whole[split]["index"])).split(32)
        return DataLoader([rows(self.whole[split], part[self.rank :: self.world]) for part in parts], batch_size=None)

    def train_dataloader(self):
        return self.batches("train")

    def val_dataloader(self):
        return self.batches("val")

    def test_dataloader(self):
        return self.batches("test")


def opinionated(module):
    """The technique with a classifier that is sure of something; a random one takes all classes to be as likely."""
    with torch.no_grad():
        module.head.weight.mul_(30)
    return module


def fit(module, folder, *callbacks, data=None, **changes):
    fitted = trainer(folder, Freeze(["encoder", "head"]), *callbacks, **changes)
    fitted.fit(module, datamodule=data or Toy())
    return fitted


def test_entropy_by_hand():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 3
    for row, found in zip(logits.double().softmax(1), entropy(logits), strict=True):
        assert found.item() == pytest.approx(-sum(p * math.log2(p) for p in row.tolist()), abs=1e-5)
    assert entropy(torch.zeros(1, 8)).item() == pytest.approx(3)
    certain = torch.tensor([[1000.0, 0, 0]], requires_grad=True)
    entropy(certain).sum().backward()
    assert entropy(certain).item() == 0
    assert certain.grad.isfinite().all()


def test_max_entropy_losses_by_hand():
    logits = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    missing = math.log2(10) - entropy(logits)
    assert_close(max_entropy_loss(logits, "plain"), missing)
    assert_close(max_entropy_loss(logits, "log"), (missing + 1e-3).log())
    assert_close(max_entropy_loss(logits, "printed"), -(missing + 1e-3).log())


@pytest.mark.parametrize("form", ["plain", "log", "printed"])
@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e-3, 1e-1, 30.0])
def test_max_entropy_losses_are_finite_also_at_the_maximum(form, scale):
    logits = scale * torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    loss = max_entropy_loss(logits, form).sum()
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() < 20


@pytest.mark.parametrize(("form", "raises"), [("plain", True), ("log", True), ("printed", False)])
def test_descent_on_the_logits_raises_entropy_unless_the_sign_is_as_printed(form, raises):
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    max_entropy_loss(logits, form).sum().backward()
    change = entropy(logits - 1e-2 * logits.grad) - entropy(logits)
    assert ((change > 0) == raises).all()


@pytest.mark.parametrize(("form", "raises"), [("plain", True), ("log", True), ("printed", False)])
def test_one_step_of_the_generator_raises_entropy(form, raises):
    """Through a frozen classifier in evaluation mode, which keeps every bit and lets the gradient pass."""
    module = technique(discriminator=None, objective={"entropy_form": form}, make={"start": 0.1})
    batch, before = pictures(32), fingerprint(frozen(opinionated(module)).encoder)
    step = torch.optim.SGD(module.generator.parameters(), lr=1e-3)
    loss = module.step(batch, "train")["loss"]
    first = entropy(module(module.make(batch, 0).changed)).mean()
    loss.backward()
    assert module.generator.head.bias.grad.abs().min() > 0
    step.step()
    change = (entropy(module(module.make(batch, 0).changed)).mean() - first).item()
    assert (change > 0) == raises
    assert abs(change) > 1e-4
    assert fingerprint(module.encoder) == before
    assert all(parameter.grad is None for parameter in module.encoder.parameters())


def test_adversarial_losses_by_hand():
    real, changed = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).double()
    believed, doubted = real.sigmoid(), changed.sigmoid()
    assert_close(discriminator_loss(real, changed), -believed.log() - (1 - doubted).log())
    assert_close(adversarial_loss(changed, "minimax"), (1 - doubted).log())
    assert_close(adversarial_loss(changed, "nonsaturating"), -doubted.log())
    far = torch.tensor([-200.0, 200.0], requires_grad=True)
    for loss in (
        adversarial_loss(far, "minimax"),
        adversarial_loss(far, "nonsaturating"),
        discriminator_loss(far, -far),
    ):
        assert loss.isfinite().all()


def test_budget_wants_so_much_harder_and_no_harder():
    before, after = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0)) * 2
    objective = Objective(**(OBJECTIVE | {"budget": 0.5}))
    wanted = (entropy(before) + 0.5).clamp(max=math.log2(10))
    found = objective.doubt(after, before, torch.zeros(6, dtype=torch.int64))
    assert_close(found, 2.0 * (entropy(after) - wanted).abs())
    flat = torch.zeros(6, 10)
    assert objective.doubt(flat, flat, torch.zeros(6, dtype=torch.int64)).abs().max() < 1e-5, "no more than all of it"


def test_guard_drops_what_the_classifier_does_not_recognise_any_more():
    logits, truth = torch.zeros(4, 3), torch.tensor([0, 1, -1, 2])
    logits[0, 0], logits[1, 0], logits[2, 0] = 3.0, 9.0, 9.0
    assert true_probability(logits, truth).tolist() == pytest.approx([0.9094, 1.23e-4, 1, 1 / 3], abs=1e-3)
    plain, guarded = Objective(**OBJECTIVE), Objective(**(OBJECTIVE | {"guard": 0.1}))
    kept = guarded.doubt(logits, None, truth) / plain.doubt(logits, None, truth).clamp(min=1e-9)
    assert kept.tolist() == pytest.approx([1, 0, 1, 0], abs=1e-6), "the last: nothing is missing from its entropy"


def test_distance_and_diversity_by_hand():
    theta, other = torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    noises = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1))
    objective = Objective(**(OBJECTIVE | {"distance": 0.2, "distance_weight": 3.0, "diversity": 0.5}))
    found = objective.remedies(theta, other, tuple(noises))
    for row in range(3):
        distance = (theta[row] - torch.eye(2, 3)).abs().mean().item()
        assert found["target"][row].item() == pytest.approx(3 * (distance - 0.2) ** 2, rel=1e-5)
        apart = (theta[row] - other[row]).abs().mean() / (noises[0, row] - noises[1, row]).abs().mean()
        assert found["diversity"][row].item() == pytest.approx(0.5 / (apart.item() + 1e-3), rel=1e-4)
    assert objective.remedies(theta).keys() == {"target"}
    assert Objective(**OBJECTIVE).remedies(theta) == {}


def test_the_loss_is_the_sum_of_its_terms():
    settings = {"distance": 0.1, "diversity": 0.1, "budget": 0.5, "guard": 0.05}
    module, batch = frozen(technique(objective=settings, make={"noise": 2, "start": 0.1})), pictures(8)
    found = module.step(batch, "train")
    terms = {"adversarial", "max_entropy", "target", "diversity"}
    scalars = {name for name, value in found.items() if isinstance(value, torch.Tensor) and value.ndim == 0}
    assert scalars == terms | {"loss", "identity_distance"}
    assert found["loss"].item() == pytest.approx(sum(found[name].item() for name in terms), rel=1e-5)
    made = module.make(batch, 0)
    expected = adversarial_loss(module.discriminator(made.changed)).mean()
    assert_close(found["adversarial"], expected.detach())


class Watch(pl.Callback):
    """After every batch: Lightning's count, the rates, and which of the networks moved."""

    def __init__(self):
        self.seen, self.before = [], {}

    def state(self, module):
        parts = {"generator": module.generator, "discriminator": module.discriminator, "encoder": module.encoder}
        return {name: fingerprint(part) for name, part in parts.items() if part is not None}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = self.state(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        moved = {name for name, value in self.state(pl_module).items() if value != self.before[name]}
        rates = [each.param_groups[0]["lr"] for each in trainer.optimizers]
        wants = all(p.requires_grad for part in (pl_module.generator,) for p in part.parameters())
        self.seen.append((trainer.global_step, moved, rates, wants))


def test_both_networks_learn_and_lightning_counts_batches(tmp_path):
    watch, module = Watch(), technique(make={"start": 0.2})
    fitted = fit(module, tmp_path, watch, max_epochs=2)
    assert [count for count, *_ in watch.seen] == [1, 2, 3, 4]
    assert all(moved == {"generator", "discriminator"} for _, moved, *_ in watch.seen)
    assert all(wants for *_, wants in watch.seen), "what took its turn aside is back"
    assert fitted.global_step == 4
    assert not module.automatic_optimization


def test_a_batch_is_the_discriminators_step_then_the_generators(tmp_path):
    """Against the same thing written out by hand."""
    module, data = technique(make={"start": 0.2}), Toy(train=32)
    expected = frozen(copy.deepcopy(module))
    batch = next(iter(data.train_dataloader()))
    fit(module, tmp_path, data=Toy(train=32), max_epochs=1, limit_val_batches=0)
    g = torch.optim.Adam(expected.generator.parameters(), 1e-3)
    d = torch.optim.SGD(expected.discriminator.parameters(), 1e-2)
    image = batch["image"].float() / 255
    changed = expected.generator(image)[0]
    real, false = expected.discriminator(image), expected.discriminator(changed.detach())
    (-F.logsigmoid(real) - F.logsigmoid(-false)).mean().backward()
    d.step()
    logits = expected.head(expected.encoder(changed))
    doubt = math.log2(7) - entropy(logits)
    (F.logsigmoid(-expected.discriminator(changed)) + 2 * doubt).mean().backward()
    g.step()
    for name, parameter in expected.named_parameters():
        assert_close(module.get_parameter(name), parameter, atol=1e-6, rtol=1e-5)


def test_rates_of_both_follow_their_schedules(tmp_path):
    watch, schedule = Watch(), {"schedule": "step", "decay_epochs": 1, "weight_decay": 0.0}
    of_generator = optimiser(name="adam", lr=1.0, decay=0.5, **schedule)
    of_discriminator = optimiser(name="sgd", lr=2.0, decay=0.1, **schedule)
    module = technique(optimiser=of_generator, discriminator_optimiser=of_discriminator)
    fit(module, tmp_path, watch, max_epochs=2, limit_val_batches=0)
    rates = [rate for *_, both, _ in watch.seen for rate in both]
    assert rates == pytest.approx([1, 2, 0.5, 0.2, 0.5, 0.2, 0.25, 0.02]), "after each of two batches an epoch"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_clipping_reaches_both_networks_in_every_precision(precision, tmp_path):
    """Plain descent at rate 1 moves a network by the norm of its gradient, which is clipped after it was unscaled."""
    plain = partial(optimiser, name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0)
    module = opinionated(technique(gradient_clip=1e-3, optimiser=plain(), discriminator_optimiser=plain()))
    before = copy.deepcopy(module)
    settings = {"precision": precision}
    if precision == "16-mixed":  # which Lightning has for GPUs alone, though torch does not
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        settings = {"plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}
    fit(module, tmp_path, data=Toy(train=32), max_epochs=1, limit_val_batches=0, **settings)
    for name in ("generator", "discriminator"):
        moves = zip(getattr(module, name).parameters(), getattr(before, name).parameters(), strict=True)
        moved = sum(((now - then) ** 2).sum().item() for now, then in moves) ** 0.5
        assert moved == pytest.approx(1e-3, rel=0.02), name


class Killed(pl.Callback):
    """Ends a fit in the middle of an epoch, before the step's checkpoint."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 5:
            raise InterruptedError


def with_engine(folder, root, *callbacks, resume=False):
    """Two epochs of three batches, logged, checkpointed after every step and resumed as the engine does it."""
    settings = {"make": {"noise": 2, "start": 0.1}, "objective": {"diversity": 0.01}}
    settings["discriminator_optimiser"] = optimiser(name="adam", lr=1e-3, schedule="cosine")
    data = CIFAR10(root, 32, 0, 1, "drop", 0.1, train_images=96)
    data.setup()
    module, log = technique(classes=data.facts["classes"], **settings), StepLog(Progress("gan"), "val/loss")
    hooks = [log, RandomState(), LastCheckpoint(folder / "last.ckpt", 0, log), Freeze(["encoder", "head"]), *callbacks]
    logger = [MetricsFile(folder / "metrics.jsonl", 3 if resume else -1)]
    fitted = trainer(folder, *hooks, logger=logger, use_distributed_sampler=False)
    path = {"ckpt_path": folder / "last.ckpt", "weights_only": True} if resume else {}
    fitted.fit(module, datamodule=data, **path)
    return module, [row for row in read_rows(folder / "metrics.jsonl") if "train/loss" in row]


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")
def test_killed_and_resumed_equals_uninterrupted(tmp_path, data_dir):
    """In the middle of an epoch, with noise, a schedule and the moments of both optimisers, to the last bit."""
    CIFAR10.draw_sample(data_dir / "samples/cifar10")
    whole, expected = with_engine(tmp_path / "whole", data_dir / "samples/cifar10")
    with pytest.raises(InterruptedError):
        with_engine(tmp_path / "broken", data_dir / "samples/cifar10", Killed())
    resumed, found = with_engine(tmp_path / "broken", data_dir / "samples/cifar10", resume=True)
    assert [row["step"] for row in expected] == list(range(6))
    terms = ("loss", "adversarial", "max_entropy", "diversity", "discriminator_loss", "identity_distance")
    for name in terms:
        assert [row[f"train/{name}"] for row in found] == [row[f"train/{name}"] for row in expected], name
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert resumed.scores["val"] == whole.scores["val"]


def test_results_of_an_epoch_are_those_of_all_its_pictures_at_once(tmp_path):
    module, data = opinionated(technique(make={"start": 0.2})), Toy(held_out=23)
    data.whole["test"]["labels"]["class"][::4] = -1
    logged = trainer(tmp_path).test(module, datamodule=data, verbose=False)[0]
    whole = data.whole["test"]
    frozen(module)
    with torch.no_grad():
        made = module.make(whole, 0)
        before, after = module(made.image), module(made.changed)
        real, changed = module.discriminator(made.image), module.discriminator(made.changed)
    truth, known = whole["labels"]["class"], whole["labels"]["class"] >= 0
    shift = (made.theta - torch.eye(2, 3)).abs()
    expected = {
        "entropy_before": entropy(before).mean(), "entropy_after": entropy(after).mean(),
        "top1_before": (before.argmax(1) == truth)[known].float().mean(),
        "top1_after": (after.argmax(1) == truth)[known].float().mean(),
        "adversarial": -F.softplus(changed).mean(), "discriminator_loss": discriminator_loss(real, changed).mean(),
        "discriminator_accuracy": ((real > 0).float().mean() + (changed < 0).float().mean()) / 2,
        "loss": (2 * max_entropy_loss(after) - F.softplus(changed)).mean(),
        "identity_distance": shift.mean(), "identity_spread": made.theta.std(0, correction=0).mean(),
        "unchanged": torch.tensor(0.0), "collapsed": torch.tensor(0.0), "squeezed": torch.tensor(0.0),
        "discriminator_won": torch.tensor(0.0), "alike": torch.tensor(1.0),
    }  # fmt: skip
    assert logged.keys() == {f"test/{name}" for name in expected} | {"test/displacement"}
    for name, value in expected.items():
        assert logged[f"test/{name}"] == pytest.approx(value.item(), abs=1e-5), name
    assert "Not collapsed" in module.verdict("test")


def test_without_a_discriminator_there_is_no_game(tmp_path):
    watch, module = Watch(), technique(discriminator=None)
    fitted = fit(module, tmp_path, watch, max_epochs=1)
    assert [count for count, *_ in watch.seen] == [1, 2]
    assert len(fitted.optimizers) == 1
    assert not any("discriminator" in key or "adversarial" in key for key in fitted.callback_metrics)
    assert "val/collapsed" in fitted.callback_metrics


def test_a_planted_collapse_is_said_and_so_is_a_discriminator_that_wins(tmp_path):
    class Knows(nn.Module):
        """Tells black corners, which untouched toy pictures never have."""

        def forward(self, image):
            return 10.0 - 20.0 * (image[..., -1, -1].sum(1) == 0).float()

    data = Toy()
    for split in data.whole.values():
        split["image"].clamp_(min=20)
    still, away = technique(), technique(make={"start": 0.5, "ranges": {"shift": 0.5}}, discriminator=Knows())
    away.generator.head.bias.data[4:] = -5  # up and to the left, so that the corner at the lower right is black
    results = [trainer(tmp_path).test(module, datamodule=data, verbose=False)[0] for module in (still, away)]
    assert [each["test/collapsed"] for each in results] == [1, 0]
    assert results[0]["test/unchanged"] == 1
    assert results[0]["test/discriminator_accuracy"] == pytest.approx(0.5)
    assert results[0]["test/top1_before"] == results[0]["test/top1_after"]
    assert still.verdict("test").startswith("Collapsed to the identity: 100.0% of the pictures are unchanged")
    assert results[1]["test/discriminator_won"] == 1
    assert "won outright: it is right about 100.0%" in away.verdict("test")
    assert "all pictures get nearly the same change" in away.verdict("test")


def test_the_sentence_names_squeezed_pictures():
    scores = {"collapsed": 0.0, "alike": 0.0, "unchanged": 0.0, "displacement": 0.7, "identity_spread": 0.3}
    scores["squeezed"] = 0.25
    assert "25.0% of them are squeezed to a line" in sentence(scores)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gradient_clip_val": 0.5}, r"trainer\.gradient_clip_val=0\.5 would clip neither network"),
        ({"accumulate_grad_batches": 2}, r"trainer\.accumulate_grad_batches=2 would do nothing"),
    ],
)
def test_trainer_settings_that_would_do_nothing_are_refused(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        fit(technique(), tmp_path, **changes)
    ((key, value),) = changes.items()
    with pytest.raises(ValueError, match=said):
        settle(plan_of("stn_gan", f"trainer.{key}={value}"))


def test_a_classifier_that_would_learn_and_features_instead_of_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"callbacks\.freeze\.modules=\[encoder, head\]"):
        trainer(tmp_path, Freeze(["encoder"])).fit(technique(), datamodule=Toy())
    batch = {"features": torch.zeros(2, 8), "labels": {"class": torch.zeros(2)}, "index": torch.arange(2)}
    with pytest.raises(ValueError, match="features=off"):
        technique().step(batch, "train")


def test_a_theta_that_is_no_number_shows_in_a_scalar_and_is_refused_in_evaluation(tmp_path):
    module = frozen(technique())
    module.generator.head.bias.data[0] = math.nan
    found = module.step(pictures(4), "train")
    assert found["identity_distance"].isnan()
    with pytest.raises(ValueError, match="θ is not a number for 40 of 40 pictures"):
        trainer(tmp_path).test(module, datamodule=Toy(), verbose=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": {"entropy_form": "max"}}, r"objective\.entropy_form='max' is not one of: plain, log, printed"),
        ({"objective": {"game": "wgan"}}, r"objective\.game='wgan' is not one of: minimax, nonsaturating"),
        ({"objective": {"budget": -1.0}}, r"objective\.budget=-1\.0 must not be negative"),
        ({"objective": {"guard": 1.0}}, r"objective\.guard=1\.0"),
        ({"objective": {"diversity": 1.0}}, r"set generator\.noise above 0"),
        ({"gradient_clip": 0.0}, r"gradient_clip=0\.0"),
        ({"classes": None}, "classes is empty"),
        ({"task": "clas"}, "did you mean class"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        technique(**changes)


def test_a_discriminator_needs_a_width():
    with pytest.raises(ValueError, match=r"discriminator\.width=0"):
        Discriminator(0)


def test_it_answers_as_its_classifier_does():
    module, batch = frozen(opinionated(technique())), pictures(3)
    probabilities = module(batch["image"]).softmax(1)
    for row, answer in enumerate(module.answers(batch, 2)):
        name, probability = answer["class"][0]
        assert CLASSES["class"].index(name) == probabilities[row].argmax()
        assert probability == pytest.approx(probabilities[row].max().item())


def shared_by_two():
    """Plain descent: Adam divides each gradient by its size, so that rounding decides where there is almost none."""
    plain = optimiser(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)
    module = technique(make={"noise": 2, "start": 0.2}, objective={"diversity": 0.01}, optimiser=plain)
    return opinionated(module)


def one_of_two(rank, folder):
    """What each process of the test below does: a fit of two batches, and what its validation came to."""
    elastic = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {key: str(value) for key, value in elastic.items()} | {"TORCHELASTIC_RUN_ID": "test"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    module = shared_by_two()
    strategy = pl.strategies.DDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
    fitted = fit(
        module, folder, data=Toy(held_out=41, rank=rank, world=2), max_epochs=1, devices=2, strategy=strategy,
        use_distributed_sampler=False,
    )  # fmt: skip
    if rank == 0:
        torch.save({"weights": module.state_dict(), "scores": module.scores["val"]}, f"{folder}/two.pt")
    assert fitted.global_step == 2
    dist.destroy_process_group()


def test_two_processes_learn_and_measure_as_one(tmp_path):
    """A step of D and one of G on each of two batches; the networks have no batch normalisation that learns."""
    mp.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one = shared_by_two()
    fit(one, tmp_path, data=Toy(held_out=41), max_epochs=1)
    for name, value in one.state_dict().items():
        assert_close(two["weights"][name], value, atol=1e-5, rtol=1e-4)
    assert two["scores"] == pytest.approx(one.scores["val"], abs=1e-5)


class Shown(Toy):
    """The data module's side of the contract, as far as the pictures of the callback want it."""

    @property
    def splits(self):
        return {name: range(len(split["index"])) for name, split in self.whole.items()}

    def picture(self, split, index):
        return self.whole[split]["image"][index]


def test_pictures_show_input_above_output_and_say_whether_it_collapsed(tmp_path, caplog):
    module, data, callback = technique(make={"start": 0.3}), Shown(held_out=9), Deformations(count=4)
    fitted = fit(module, tmp_path, callback, data=data, max_epochs=3)
    written = json.loads((tmp_path / "pictures/deformations.json").read_text(encoding="utf-8"))
    assert [entry["title"] for entry in written] == ["While it learned"]
    assert "after epoch 1, 2, 3." in written[0]["caption"]
    assert module.verdict("val") in written[0]["caption"]
    logging.getLogger("nunchi").addHandler(caplog.handler)  # it does not hand on to the root, see engine/console.py
    with caplog.at_level(logging.INFO, "nunchi"):
        fitted.test(module, datamodule=data, verbose=False)
    logging.getLogger("nunchi").removeHandler(caplog.handler)
    assert f"{tmp_path.name}: {module.verdict('test')}" in caplog.messages
    written = json.loads((tmp_path / "pictures/deformations.json").read_text(encoding="utf-8"))
    assert [entry["title"] for entry in written] == ["Input above output", "While it learned"]
    assert "Not collapsed" in written[0]["caption"]
    made = module.make({"image": data.whole["test"]["image"][[0, 2, 5, 8]], "index": torch.tensor([0, 2, 5, 8])}, 0)
    assert_close(torch.tensor(written[0]["theta"]), made.theta)
    page = np.asarray(Image.open(tmp_path / written[0]["image"]))
    cell = slice(4 + 96 + 4, 4 + 96 + 4 + 96)  # the second picture of a row, three times its size
    above, below = page[4:100:3, cell][:, ::3], page[4 + 96 + 14 + 4 :][:96:3, cell][:, ::3]
    assert np.array_equal(above, data.picture("test", 2).permute(1, 2, 0).numpy())
    assert np.array_equal(below, as_bytes(made.changed)[1].permute(1, 2, 0).numpy())


def test_pictures_of_a_resumed_fit_begin_with_its_first_epoch():
    callback, later = Deformations(count=2), Deformations(count=2)
    callback.thetas = {epoch: torch.full((2, 2, 3), float(epoch)) for epoch in range(40)}
    later.load_state_dict(callback.state_dict())
    assert list(chosen(later.thetas)) == [0, 2, 10, 22, 39]
    assert list(chosen({7: torch.zeros(1)})) == [7]


def test_a_trained_generator_goes_in_front_of_any_classifier(tmp_path):
    """Taken over by name, frozen bit by bit, and met by training pictures alone."""
    made = technique(make={"noise": 2, "start": 0.3})
    torch.save({"state_dict": made.state_dict()}, tmp_path / "gan.ckpt")
    augment = Generated(generator(noise=2), share=1.0)
    module = Classifier(Encoder("test_resnet", "none"), CLASSES, None, 0.0, 0.0, augment, 0, optimiser())
    warm = WarmStart(str(tmp_path / "gan.ckpt"), ["augment.generator"], {"augment.generator": "generator"})
    trainer(tmp_path, warm, Freeze(["augment"]), max_epochs=1).fit(module, datamodule=Toy())
    assert fingerprint(module.augment.generator) == fingerprint(made.generator)
    batch = pictures(5)
    draws = uniform(0, module.current_epoch, batch["index"], 3)[:, 1:]
    assert_close(module.augmented(batch)["image"], made.generator(batch["image"], draws)[0])


AUGMENTERS = sorted(path.stem for path in (ROOT / "conf/augmenter").glob("*.yaml"))


@pytest.mark.parametrize("augmenter", AUGMENTERS)
def test_augmenters_are_what_they_say(augmenter):
    """Each composes to a plan that would run, with a name of its own, and a generator where it says so."""
    plan = plan_of("stn_gan", f"augmenter={augmenter}")
    settle(plan)
    module, finetune = plan["stages"]["gan"]["module"], plan["stages"]["finetune"]
    learned = augmenter not in ("none", "rand_augment", "trivial_augment")
    assert (plan["only"] is None) is learned
    assert finetune["callbacks"]["warm_start"]["checkpoint"].endswith("gan.ckpt" if learned else "classifier.ckpt")
    assert bool(finetune["callbacks"]["freeze"]["modules"]) is learned
    if learned:
        assert finetune["module"]["augment"]["generator"] == module["generator"]
        assert finetune["module"]["augment"]["share"] == (0.5 if module["generator"]["ranges"] else 1.0)
    assert (module["discriminator"] is None) is (augmenter in ("no_discriminator", "budget", "guard", "diversity"))
    assert (plan["theirs"] is not None) is (augmenter in ("none", "source"))


def test_augmenters_have_names_of_their_own():
    names = [plan_of("stn_gan", f"augmenter={augmenter}")["variant"] for augmenter in AUGMENTERS]
    assert len(set(names)) == len(AUGMENTERS)


def test_the_sources_schedule_is_the_sources():
    stages = plan_of("stn_gan", "schedule=source", "augmenter=source")["stages"]
    rates = {
        name: (stages[name]["module"]["optimiser"]["name"], stages[name]["module"]["optimiser"]["lr"])
        for name in stages
    }
    assert rates == {"classifier": ("adam", 0.1), "gan": ("adam", 1e-4), "finetune": ("adam", 0.01)}
    assert [stage["trainer"]["max_epochs"] for stage in stages.values()] == [100, 50, 100]
    rival, objective = (stages["gan"]["module"][key] for key in ("discriminator_optimiser", "objective"))
    assert (rival["name"], rival["lr"], rival["momentum"]) == ("sgd", 1e-4, 0.0)
    assert (objective["entropy_weight"], objective["game"]) == (2.0, "minimax")


@pytest.mark.slow
def test_stages_hand_over_the_classifier_and_then_the_generator(cli, tmp_path):
    """What was frozen arrives bit by bit, and what was fine-tuned is another classifier."""
    short = [
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=3",
        "stages.classifier.module.encoder.name=test_resnet",
    ]
    code, printed = cli("experiment=stn_gan", "sample=true", "logger=none", "trainer.accelerator=cpu", *short)
    assert code == 0, printed
    (run,) = (tmp_path / "stn_gan").iterdir()
    first, made, last = (
        torch.load(run / f"{stage}.ckpt", weights_only=True)["state_dict"]
        for stage in ("classifier", "gan", "finetune")
    )
    frozen_tensors = [name for name in first if name.startswith(("encoder.", "head."))]
    assert all(torch.equal(first[name], made[name]) for name in frozen_tensors)
    assert any(not torch.equal(first[name], last[name]) for name in frozen_tensors)
    learned = [name for name in made if name.startswith("generator.")]
    assert learned
    assert all(torch.equal(made[name], last[f"augment.{name}"]) for name in learned)
    assert "Input above output" in (run / "report.html").read_text(encoding="utf-8")
