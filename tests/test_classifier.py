"""Classifier: exact figures, missing labels, what is changed in training alone, probe and fine-tuning."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, top_k_accuracy_score
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from callbacks.confusion import Confusion
from callbacks.freeze import Freeze
from callbacks.predictions import read
from engine.suggest import composed
from lightning_modules.classifier import Classifier
from lightning_modules.nn.keyed import uniform
from tests.toy_fashion import optimiser, small_resnet, trainer
from tests.toy_pictures import CLASSES, KINDS, Pictures, pictures, rows


class Bleach(nn.Module):
    """Fades each image by a random share, and notes what it was asked."""

    slots = 2

    def __init__(self):
        super().__init__()
        self.draws = []

    def forward(self, image, draws):
        self.draws.append(draws)
        return image / 255 * draws[:, :1, None, None]


def classifier(seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"classes": CLASSES, "task": None, "label_smoothing": 0.0, "dropout": 0.0, "augment": None, "seed": 3}
    settings |= {"encoder": small_resnet(), "optimiser": optimiser()} | changes
    return Classifier(**settings)


def test_results_of_an_epoch_are_those_of_its_labelled_samples_at_once(tmp_path):
    module, data = classifier(), Pictures(held_out=90, batch_size=13)
    data.whole["test"]["labels"]["class"][::4] = -1
    logged = trainer(tmp_path, Confusion()).test(module, datamodule=data, verbose=False)[0]
    whole = data.whole["test"]
    known = whole["labels"]["class"] >= 0
    with torch.no_grad():
        logits, truth = module.eval()(whole["image"])[known], whole["labels"]["class"][known]
    expected = dict(
        zip(
            ("precision", "recall", "f1"),
            precision_recall_fscore_support(
                truth, logits.argmax(1), average="macro", labels=truth.unique(), zero_division=0
            ),
            strict=False,
        )
    )
    expected["top1"] = accuracy_score(truth, logits.argmax(1))
    expected["top5"] = top_k_accuracy_score(truth, logits, k=5, labels=range(len(KINDS)))
    expected["loss"] = F.cross_entropy(logits, truth).item()
    assert logged == {f"test/{key}": pytest.approx(value, abs=1e-6) for key, value in expected.items()}
    assert module.metrics["test"]["confusion"]["class"].compute().sum() == known.sum()
    assert (tmp_path / "confusion.json").is_file()


def test_top5_needs_a_sixth_class_to_say_anything():
    few = classifier(classes={"class": KINDS[:5]}).eval()
    batch = pictures(30)
    few.step(rows(batch, batch["labels"]["class"] < 5), "val")
    assert few.results("val").keys() == {f"val/{key}" for key in ("loss", "top1", "precision", "recall", "f1")}


def test_a_missing_label_reaches_neither_loss_nor_metrics_nor_gradient():
    batch = pictures(24, unlabelled=0.5)
    known = rows(batch, batch["labels"]["class"] >= 0)
    whole, part = classifier(label_smoothing=0.1).eval(), classifier(label_smoothing=0.1).eval()
    for module, given in ((whole, batch), (part, known)):
        module.step(given, "train")["loss"].backward()
        module.step(given, "val")
    assert whole.results("val") == pytest.approx(part.results("val"), abs=1e-6)
    for ours, theirs in zip(whole.parameters(), part.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    nobody = {**batch, "labels": {"class": torch.full((24,), -1)}}
    loss = whole.step(nobody, "train")["loss"]
    loss.backward()
    assert loss == 0
    whole.reset_metrics("val")
    whole.step(nobody, "val")
    assert whole.results("val") == {}


def test_batches_without_labels_are_refused_in_words():
    module, batch = classifier(), pictures(4)
    with pytest.raises(ValueError, match="training batches of this data set have no labels"):
        module.step({key: value for key, value in batch.items() if key != "labels"}, "train")


def test_smoothing_is_of_the_training_loss_alone():
    module, batch = classifier(label_smoothing=0.2).eval(), pictures(16)
    logits = module(batch["image"])
    labels = batch["labels"]["class"]
    assert_close(module.step(batch, "train")["loss"], F.cross_entropy(logits, labels, label_smoothing=0.2))
    assert_close(module.step(batch, "val")["loss"], F.cross_entropy(logits, labels))


def test_training_images_alone_are_augmented_by_numbers_that_have_a_key(tmp_path):
    bleach = Bleach()
    module, data = classifier(augment=bleach).eval(), Pictures(train=32)
    batch = data.whole["train"]
    loss = module.step(batch, "train")["loss"]
    draws = uniform(3, 0, batch["index"], 2)
    assert_close(bleach.draws.pop(), draws, rtol=0, atol=0)
    changed = {**batch, "image": batch["image"] / 255 * draws[:, :1, None, None]}
    assert_close(loss, module.step(changed, "val")["loss"])
    module.step(batch, "val")
    module.answers(batch, 1)
    assert not bleach.draws
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
    first, second = bleach.draws
    assert set(first.flatten().tolist()).isdisjoint(second.flatten().tolist()), "other numbers in another epoch"


def test_augmenting_what_was_computed_once_is_refused():
    module = classifier(augment=Bleach())
    batch = {**pictures(4), "features": torch.zeros(4, module.head.in_features)}
    del batch["image"]
    with pytest.raises(ValueError, match=r"augment .* features=off"):
        module.step(batch, "train")
    module.step(batch, "val")


def test_a_probe_trains_the_layer_alone_on_images_as_on_features():
    module, batch = classifier().eval(), pictures(12)
    features = {key: value for key, value in batch.items() if key != "image"}
    features["features"] = module.encoder(batch["image"]).detach().half()
    kept, computed = module.step(features, "train"), module.step(batch, "train")
    assert_close(kept["loss"], computed["loss"], rtol=1e-3, atol=1e-4)
    kept["loss"].backward()
    assert all(parameter.grad is None for parameter in module.encoder.parameters())


def test_it_learns_what_can_be_seen(tmp_path):
    module, data = classifier(optimiser=optimiser(lr=1e-2)), Pictures(train=448, held_out=140, batch_size=64)
    fitted = trainer(tmp_path, max_epochs=8)
    fitted.fit(module, datamodule=data)
    results = fitted.test(module, datamodule=data, verbose=False)[0]
    assert results["test/top1"] > 0.65, results
    assert results["test/top5"] > 0.95, results


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
def test_gradients_are_clipped_in_bf16_too(tmp_path, name):
    module = classifier(
        optimiser=optimiser(name=name, weight_decay=0.0, momentum=0.0, lr=1.0 if name == "sgd" else 1e-3)
    )
    before = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    fit = trainer(tmp_path, max_steps=1, precision="bf16-mixed", gradient_clip_val=1e-3)
    fit.fit(module, datamodule=Pictures())
    moved = torch.cat([p.detach().reshape(-1) for p in module.parameters()]) - before
    assert moved.norm() > 0
    if name == "sgd":  # the others rescale the gradient
        assert moved.norm() == pytest.approx(1e-3, rel=0.01)


def test_a_probe_moves_the_layer_alone(tmp_path):
    module, data = classifier(optimiser=optimiser(lr=1e-2)), Pictures()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    trainer(tmp_path, Freeze(["encoder"])).fit(module, datamodule=data)
    moved = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"head.weight", "head.bias"}


def test_one_task_of_several_is_learned():
    classes = {"색조": ["red", "green"], "class": KINDS}
    batch = pictures(20)
    batch["labels"]["색조"] = torch.zeros(20, dtype=torch.int64)
    assert classifier(classes=classes).classes == {"색조": ["red", "green"]}
    module = classifier(classes=classes, task="class").eval()
    outputs = module.step(batch, "val")
    assert outputs["logits"].keys() == outputs["labels"].keys() == module.classes.keys() == {"class"}
    assert module.results("val")["val/top1"] == pytest.approx(
        accuracy_score(batch["labels"]["class"], outputs["logits"]["class"].argmax(1)), abs=1e-6
    )
    assert read(outputs).keys() == set(range(20))


def test_answers_are_the_likeliest_classes_best_first():
    module, batch = classifier().eval(), pictures(5)
    answers = module.answers({"image": batch["image"]}, top_k=3)
    probabilities = module(batch["image"]).softmax(1)
    assert len(answers) == 5
    for row, answer in zip(probabilities, answers, strict=True):
        values, ids = row.topk(3)
        assert answer == {"class": [(KINDS[i], pytest.approx(v)) for i, v in zip(ids, values.tolist(), strict=True)]}
    predicted = module.predict_step({"image": batch["image"], "index": batch["index"]}, 0)
    assert_close(predicted["logits"]["class"].softmax(1), probabilities)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": None}, "classes is empty"),
        ({"classes": {"class": ["cat"]}}, r"classes\.class=\['cat'\]: a task needs two classes"),
        ({"task": "clas"}, r"task='clas': the data have no such task; did you mean class\?"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1\.0"),
        ({"dropout": -0.1}, r"dropout=-0\.1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        classifier(**changes)


@pytest.mark.parametrize("name", ["classifier", "linear_probe"])
def test_the_configs_build_it(name):
    config = OmegaConf.to_container(composed([f"+lightning_modules@stages.fit.module={name}"]).stages.fit.module)
    module = instantiate(config | {"classes": CLASSES, "seed": 0}, _convert_="all")
    assert module.head.weight.shape == (len(KINDS), module.encoder.features)
    assert (module.optimiser.lr > 1e-3) is (name == "linear_probe")


def one_of_two(rank, folder):
    """What each process of the test below does: its share of a batch, then its share of an evaluation."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    module = classifier().eval()
    module.step(rows(pictures(12, unlabelled=0.4), slice(6 * rank, 6 * rank + 6)), "train")["loss"].backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    for gradient in gradients:
        dist.all_reduce(gradient)
    for chosen in torch.arange(rank, 27, 2).split(4):
        module.step(rows(pictures(27, seed=5, unlabelled=0.3), chosen), "test")
    torch.save({"gradients": [g / 2 for g in gradients], "results": module.results("test")}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    two = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    module = classifier().eval()
    module.step(pictures(12, unlabelled=0.4), "train")["loss"].backward()
    for parameter, gradient in zip(module.parameters(), two[0]["gradients"], strict=True):
        assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
    for chosen in torch.arange(27).split(9):
        module.step(rows(pictures(27, seed=5, unlabelled=0.3), chosen), "test")
    assert two[0]["results"] == two[1]["results"]
    assert two[0]["results"] == pytest.approx(module.results("test"), abs=1e-6)
