"""FashionMTL: figures against scikit-learn, missing labels, shared against separate, and two processes against one."""

import math
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from torch.nn import functional as F
from torch.testing import assert_close

from lightning_modules.nn.losses import cross_entropy
from lightning_modules.nn.metrics import ExactMean, classification_scores
from tests.toy_fashion import CLASSES, Toy, batch, optimiser, technique, trainer

TASKS = list(CLASSES)


def slice_of(whole, rows):
    labels = {task: values[rows] for task, values in whole["labels"].items()}
    return {"image": whole["image"][rows], "labels": labels, "index": whole["index"][rows]}


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_scikit_learn_over_classes_with_support(seed):
    random = np.random.default_rng(seed)
    classes = int(random.integers(2, 9))
    occurring = random.choice(classes, size=random.integers(1, classes + 1), replace=False)
    truth, guess = random.choice(occurring, 50), random.integers(0, classes, 50)
    present = np.unique(truth)
    ours = classification_scores(torch.tensor(confusion_matrix(truth, guess, labels=range(classes))))
    theirs = precision_recall_fscore_support(truth, guess, labels=present, average="macro", zero_division=0)
    assert ours["top1"] == pytest.approx(accuracy_score(truth, guess), abs=1e-12)
    for key, expected in zip(("precision", "recall", "f1"), theirs, strict=False):
        assert ours[key] == pytest.approx(expected, abs=1e-12)


def test_no_sample_gives_no_score():
    assert classification_scores(torch.zeros(3, 3, dtype=torch.int64)) == {}


def test_exact_mean_does_not_depend_on_order_and_shows_what_is_not_finite():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 10
    counted = torch.arange(1000) % 3 > 0
    whole, pieces = ExactMean(), ExactMean()
    whole.update(values, counted)
    for rows in torch.randperm(1000).split(7):
        pieces.update(values[rows], counted[rows])
    assert whole.compute() == pieces.compute()
    assert whole.compute().item() == pytest.approx(values[counted].mean().item(), abs=1e-6)
    whole.update(torch.tensor([math.inf]), torch.tensor([False]))
    assert whole.compute().isfinite()
    whole.update(torch.tensor([math.inf]), torch.tensor([True]))
    assert whole.compute().isnan()


def test_cross_entropy_by_hand():
    logits = torch.randn(6, 4, dtype=torch.bfloat16)
    labels = torch.tensor([0, 3, -1, 1, 2, -1])
    losses = cross_entropy(logits, labels, smoothing=0.2)
    for row, label in enumerate(labels.tolist()):
        target = 0.8 * F.one_hot(torch.tensor(max(label, 0)), 4) + 0.2 / 4
        expected = -(target * logits[row].float().log_softmax(0)).sum() if label >= 0 else torch.tensor(0.0)
        assert_close(losses[row], expected)


def test_loss_is_the_weighted_sum_of_means_over_labelled_samples():
    module, data = technique(loss_weights={"type": 0.5}, label_smoothing=0.1), batch(10)
    module.eval()
    logits, expected = module(data["image"]), 0.0
    for task, weight in (("색조", 1.0), ("type", 0.5), ("a.b", 1.0)):
        known = data["labels"][task] >= 0
        scores, labels = logits[task][known], data["labels"][task][known]
        expected += weight * F.cross_entropy(scores, labels, label_smoothing=0.1)
    outputs = module.step(data, "train")
    assert_close(outputs["loss"], expected)
    assert (data["labels"]["type"] == -1).any()
    assert {key for key, value in outputs.items() if isinstance(value, torch.Tensor) and value.ndim == 0} == {
        "loss", "색조/loss", "type/loss", "a.b/loss",
    }  # fmt: skip


def test_task_without_any_label_contributes_nothing_but_its_head_stays_in_the_graph():
    module, data = technique(), batch()
    data["labels"]["type"].fill_(-1)
    outputs = module.step(data, "train")
    outputs["loss"].backward()
    assert outputs["type/loss"] == 0
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())
    assert module.heads["type"].weight.grad.abs().sum() == 0
    assert module.heads["a.b"].weight.grad.abs().sum() > 0


def test_unlabelled_task_is_left_out_of_the_results_and_of_their_means():
    module, data = technique().eval(), batch(20)
    data["labels"]["type"].fill_(-1)
    module.step(data, "val")
    results = module.results("val")
    assert not any(key.startswith("val/type/") for key in results)
    assert results["val/top1"] == pytest.approx((results["val/색조/top1"] + results["val/a.b/top1"]) / 2)
    data["labels"] = {task: torch.full_like(labels, -1) for task, labels in data["labels"].items()}
    module.reset_metrics("val")
    module.step(data, "val")
    assert module.results("val") == {}


def test_results_of_an_epoch_are_those_of_all_its_samples_at_once(tmp_path):
    module, data = technique(), Toy(test=23)
    logged = trainer(tmp_path).test(module, datamodule=data, verbose=False)[0]
    whole = torch.utils.data.default_collate(data.splits["test"])
    with torch.no_grad():
        logits = module.eval()(whole["image"])
    means = {"top1": [], "precision": [], "recall": [], "f1": []}
    for task in TASKS:
        known = whole["labels"][task] >= 0
        truth, guess = whole["labels"][task][known], logits[task].argmax(1)[known]
        expected = [accuracy_score(truth, guess)]
        expected += precision_recall_fscore_support(
            truth, guess, average="macro", labels=truth.unique(), zero_division=0
        )
        for key, value in zip(means, expected, strict=False):
            assert logged[f"test/{task}/{key}"] == pytest.approx(value, abs=1e-6)
            means[key].append(value)
        assert logged[f"test/{task}/loss"] == pytest.approx(
            F.cross_entropy(logits[task], whole["labels"][task], ignore_index=-1).item(), abs=1e-5
        )
        assert module.metrics["test"]["confusion"][task].compute().sum() == known.sum()
    for key, values in means.items():
        assert logged[f"test/{key}"] == pytest.approx(np.mean(values), abs=1e-6)


def test_it_learns_what_can_be_seen(tmp_path):
    module, data = technique(), Toy(train=64, test=40)
    fitted = trainer(tmp_path, max_epochs=12)
    fitted.fit(module, datamodule=data)
    results = fitted.test(module, datamodule=data, verbose=False)[0]
    assert results["test/top1"] > 0.9, results


def test_separate_networks_have_a_trunk_for_each_task_and_independent_weights():
    shared, separate = technique(), technique(shared=False)
    trunk = sum(parameter.numel() for parameter in shared.encoder.parameters())
    heads = sum(parameter.numel() for parameter in shared.heads.parameters())
    assert sum(parameter.numel() for parameter in shared.parameters()) == trunk + heads
    assert sum(parameter.numel() for parameter in separate.parameters()) == 3 * trunk + heads
    first, second = (separate.encoder[task].model.conv1[0].weight for task in TASKS[:2])
    assert not torch.equal(first, second)
    separate(batch()["image"])["색조"].sum().backward()
    assert all(parameter.grad is not None for parameter in separate.encoder["색조"].parameters())
    assert all(parameter.grad is None for parameter in separate.encoder["a.b"].parameters())


def test_answers_are_the_likeliest_classes_best_first():
    module, data = technique().eval(), batch(4)
    answers = module.answers({"image": data["image"]}, top_k=2)
    probabilities = {task: scores.softmax(1) for task, scores in module(data["image"]).items()}
    assert len(answers) == 4
    assert [list(answer) for answer in answers] == [TASKS] * 4
    for row, answer in enumerate(answers):
        for task in TASKS:
            best = probabilities[task][row].argmax().item()
            assert answer[task][0] == (CLASSES[task][best], pytest.approx(probabilities[task][row, best].item()))
            assert answer[task][0][1] >= answer[task][1][1]
    assert all(len(answer["색조"]) == 3 for answer in module.answers({"image": data["image"]}, top_k=99))


def test_bf16_autocast_keeps_losses_and_metrics_in_float32(tmp_path):
    module, data = technique(), Toy()
    fitted = trainer(tmp_path, precision="bf16-mixed", max_epochs=1)
    fitted.fit(module, datamodule=data)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = module.step(batch(), "train")
    assert outputs["loss"].dtype == torch.float32
    assert outputs["logits"]["type"].dtype == torch.float32
    assert fitted.callback_metrics["val/loss"].isfinite()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": None}, "classes is empty"),
        ({"classes": {"Daily": ["casual"]}}, r"classes\.Daily=\['casual'\]: a task needs two classes"),
        ({"classes": {"a.b": ["x", "y"], "a_b": ["x", "y"]}}, "differ by no more than a dot"),
        ({"loss_weights": {"typ": 2}}, r"loss_weights\.typ: .* did you mean type\?"),
        ({"loss_weights": {"type": -1}}, r"loss_weights\.type=-1 must not be negative"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1\.0"),
        ({"dropout": -0.1}, r"dropout=-0\.1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        technique(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "adamx"}, r"optimiser\.name='adamx' is not one of: sgd, adam, adamw"),
        ({"schedule": "linear"}, r"optimiser\.schedule='linear'"),
        ({"lr": 0.0}, r"optimiser\.lr=0\.0"),
        ({"weight_decay": -1.0}, r"optimiser\.weight_decay=-1\.0"),
        ({"decay": 2.0}, r"optimiser\.decay=2\.0"),
    ],
)
def test_optimiser_settings_that_make_no_sense_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        optimiser(**changes)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimiser_takes_trained_parameters_only_and_decays_matrices_only(name):
    module = technique()
    module.encoder.model.conv1.requires_grad_(False)
    settings = optimiser(name=name, lr=0.1, weight_decay=0.3, encoder_lr_scale=0.5)
    groups = settings.build(module.named_parameters()).param_groups
    taken = {parameter: group for group in groups for parameter in group["params"]}
    for key, parameter in module.named_parameters():
        assert (parameter in taken) == parameter.requires_grad
        if parameter in taken:
            assert taken[parameter]["lr"] == (0.05 if key.startswith("encoder.") else 0.1)
            assert taken[parameter]["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)


def test_schedules():
    cosine = partial(optimiser(schedule="cosine", warmup_epochs=0.5).factor, epoch_steps=10, steps=105)
    assert [cosine(step) for step in (0, 4)] == [0.2, 1.0]
    assert cosine(5) == 1.0
    assert cosine(55) == pytest.approx(0.5)
    assert cosine(105) == pytest.approx(0.0)
    dropping = optimiser(schedule="step", decay=0.95)
    assert [dropping.factor(step, 10, 100) for step in (9, 10, 29)] == pytest.approx([1.0, 0.95, 0.95**2])
    assert optimiser().steady
    assert not optimiser(warmup_epochs=1).steady


def test_learning_rate_follows_the_schedule_in_a_fit(tmp_path):
    class Rates(pl.Callback):
        seen = ()

        def on_train_batch_start(self, trainer, *_):
            self.seen += (trainer.optimizers[0].param_groups[0]["lr"],)

    rates = Rates()
    module = technique(optimiser=optimiser(lr=1.0e-3, schedule="step", decay=0.5, warmup_epochs=1))
    trainer(tmp_path, rates, max_epochs=3).fit(module, datamodule=Toy())
    assert rates.seen == pytest.approx([0.5e-3, 1e-3, 0.5e-3, 0.5e-3, 0.25e-3, 0.25e-3])


def one_of_two(rank, folder):
    """What each process of the test below does: its share of a batch, then its share of an evaluation."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    module = technique().eval()
    mine = slice_of(batch(8), slice(4 * rank, 4 * rank + 4))
    module.step(mine, "train")["loss"].backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    for gradient in gradients:
        dist.all_reduce(gradient)
    evaluated = batch(27, seed=5)
    for rows in torch.arange(rank, 27, 2).split(4):
        module.step(slice_of(evaluated, rows), "test")
    torch.save({"gradients": [g / 2 for g in gradients], "results": module.results("test")}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    two = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    module = technique().eval()
    module.step(batch(8), "train")["loss"].backward()
    halves = batch(8)["labels"]["type"].view(2, 4)
    assert (halves[0] >= 0).sum() != (halves[1] >= 0).sum(), "the two halves must differ in their number of labels"
    for parameter, gradient in zip(module.parameters(), two[0]["gradients"], strict=True):
        assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
    for rows in torch.arange(27).split(9):
        module.step(slice_of(batch(27, seed=5), rows), "test")
    assert two[0]["results"] == two[1]["results"]
    exact = {key: value for key, value in module.results("test").items() if not key.endswith("loss")}
    assert exact == {key: two[0]["results"][key] for key in exact}
    for key, value in module.results("test").items():
        assert two[0]["results"][key] == pytest.approx(value, abs=1e-6)
