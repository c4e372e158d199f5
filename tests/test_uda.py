"""Consistency on unlabelled photos, and losses that balance classes: each derived again with slow loops."""

import math

import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import RandAugment

from lightning_modules.classifier import Classifier
from lightning_modules.nn.balance import BalancedCrossEntropy, effective_weights
from lightning_modules.nn.keyed import uniform
from lightning_modules.nn.losses import cross_entropy
from lightning_modules.nn.policies import PerImage
from lightning_modules.nn.uda import UDA
from tests.toy_fashion import CLASSES, batch, optimiser, small_resnet, technique


class Darker(nn.Module):
    """A change that a test can tell: by the draw of each photo."""

    slots = 1

    def forward(self, image, draws):
        return image.float() / 255 * draws.view(-1, 1, 1, 1)


def uda(**changes):
    settings = {"weight": 1.0, "confidence": 0.5, "temperature": 0.4, "annealing": "none", "seed": 0}
    return UDA(Darker(), **{**settings, **changes})


def mixed(count=8, unlabelled=5):
    more = batch(unlabelled, 1)
    return {**batch(count), "unlabelled": {"image": more["image"], "index": more["index"], "position": more["index"]}}


def test_agreement_is_that_of_a_slow_loop():
    random = torch.Generator().manual_seed(0)
    clean, changed = (2 * torch.randn(20, 4, generator=random) for _ in range(2))
    for confidence, temperature in ((0.0, 1.0), (0.6, 0.4)):
        found = uda(confidence=confidence, temperature=temperature).agreement(clean, changed)
        for i in range(20):
            likely = [math.exp(v) for v in clean[i].tolist()]
            sure = max(likely) / sum(likely) > confidence
            sharp = [v ** (1 / temperature) for v in likely]
            log_norm = math.log(sum(math.exp(v) for v in changed[i].tolist()))
            loss = -sum(s / sum(sharp) * (v - log_norm) for s, v in zip(sharp, changed[i].tolist(), strict=True))
            assert found.confident[i].item() is sure
            assert found.losses[i].item() == pytest.approx(loss if sure else 0.0, abs=1e-5)
    assert 0 < found.confident.sum() < 20


def test_the_target_has_no_gradient_and_the_changed_copy_has():
    clean, changed = torch.randn(6, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    uda(confidence=0.0).agreement(clean, changed).losses.sum().backward()
    assert clean.grad is None
    assert changed.grad.abs().sum() > 0


def test_clean_photos_go_through_the_network_without_gradients():
    seen = []
    module = technique()

    def score(rows):
        seen.append((len(rows["image"]), torch.is_grad_enabled()))
        return module.score(rows)

    found = mixed()
    logits, agreements = uda()(score, found["image"], found["unlabelled"], 0)
    assert seen == [(5, False), (13, True)]
    assert all(len(z) == 8 for z in logits.values())
    assert all(len(each.losses) == 5 for each in agreements.values())


@pytest.mark.parametrize(
    ("annealing", "middle"), [("linear", 0.5), ("log", 1 - math.exp(-2.5)), ("exp", math.exp(-2.5))]
)
def test_annealing_rises_from_chance_to_one(annealing, middle):
    rule = uda(annealing=annealing)
    assert rule.ceiling(1.0, 4) == pytest.approx(1.0, abs=0.01)
    assert rule.ceiling(0.5, 4) == pytest.approx(middle * 0.75 + 0.25)
    if annealing != "exp":
        assert rule.ceiling(0.0, 4) == pytest.approx(0.25)
    logits, labels = torch.tensor([[5.0, 0, 0, 0], [0.0, 0, 0, 1]]), torch.tensor([0, 0])
    assert rule.still_learned(logits, labels, 0.1).tolist() == [False, True]
    assert uda().still_learned(logits, labels, 0.0).tolist() == [True, True]


def test_a_step_is_the_supervised_loss_and_the_weighted_agreement():
    torch.manual_seed(0)
    module = technique(uda=uda(weight=3.0, confidence=0.0), label_smoothing=0.1)
    module.progress = lambda: 0.5
    module.eval()  # so that batch normalisation does not depend on what goes through together
    found = mixed()
    outputs = module.step(found, "train")
    plain = technique(label_smoothing=0.1)
    plain.load_state_dict(module.state_dict())
    supervised = plain.eval().step(batch(), "train")["loss"]
    scores = module.score({"image": found["unlabelled"]["image"]})
    changed = Darker()(found["unlabelled"]["image"], uniform(0, 0, found["unlabelled"]["position"], 1))
    copies = module.score({"image": changed})
    apart = sum(module.supervision.uda.agreement(scores[t], copies[t]).losses.mean() for t in CLASSES)
    assert outputs["loss"].item() == pytest.approx((supervised + 3 * apart).item(), rel=1e-4)
    assert outputs["unlabelled/loss"].item() == pytest.approx(apart.item(), rel=1e-4)
    assert outputs["unlabelled/confident"] == 1
    assert outputs["logits"]["type"].shape == (8, 2)


def test_a_classifier_learns_so_too_and_without_photos_it_says_what_is_missing():
    module = Classifier(
        small_resnet(), {"class": ["a", "b"]}, None, 0.0, 0.0, None, 0, optimiser(), uda=uda(annealing="linear")
    )
    module.progress = lambda: 0.0
    found = mixed()
    found["labels"] = {"class": torch.zeros(8, dtype=torch.long)}
    outputs = module.step(found, "train")
    outputs["loss"].backward()
    assert outputs["unlabelled/loss"] >= 0
    assert module.head.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="the data bring none: set unlabelled of the data"):
        module.step({key: value for key, value in found.items() if key != "unlabelled"}, "train")
    assert set(module.step(found, "val")) == {"loss", "logits", "labels", "index"}, "evaluation looks at labels alone"


def test_a_process_without_unlabelled_photos_in_its_share_goes_on():
    module = technique(uda=uda())
    module.progress = lambda: 0.5
    found = mixed()
    found["unlabelled"] = {key: value[:0] for key, value in found["unlabelled"].items()}
    outputs = module.step(found, "train")
    assert outputs["unlabelled/loss"] == outputs["unlabelled/confident"] == 0
    outputs["loss"].backward()


def test_torchvision_changes_are_the_same_for_the_same_turn():
    strong = PerImage(RandAugment())
    image = batch(4)["image"]
    draws = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    assert torch.equal(strong(image, draws), strong(image, draws))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight": -1.0}, "uda.weight=-1.0 must be at least 0"),
        ({"confidence": 1.0}, r"uda.confidence=1.0 must be at least 0 and below 1"),
        ({"temperature": 0.0}, "uda.temperature=0.0 must be above 0"),
        ({"annealing": "cosine"}, "uda.annealing='cosine' must be one of: none, linear, log, exp"),
    ],
)
def test_wrong_settings(changes, said):
    with pytest.raises(ValueError, match=said):
        uda(**changes)


COUNTS = [900, 90, 10]


def test_effective_weights_are_the_papers_up_to_scale():
    for beta in (0.0, 0.9, 0.999):
        found = effective_weights(torch.tensor(COUNTS, dtype=torch.float64), beta).tolist()
        paper = [(1 - beta) / (1 - beta**n) for n in COUNTS]
        scale = sum(COUNTS) / sum(w * n for w, n in zip(paper, COUNTS, strict=True))
        assert found == pytest.approx([w * scale for w in paper])


def test_balanced_losses_are_those_of_a_slow_loop():
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(12, 3, generator=random), torch.randint(-1, 3, (12,), generator=random)
    plain = BalancedCrossEntropy("none", 1.0, None)(logits, labels, 0.1)
    assert torch.equal(plain, cross_entropy(logits, labels, 0.1))
    weights = effective_weights(torch.tensor(COUNTS, dtype=torch.float64), 0.99)
    weighted = BalancedCrossEntropy("class_balanced", 0.99, COUNTS)(logits, labels, 0.1)
    expected = [value * weights[k].item() if k >= 0 else 0.0 for value, k in zip(plain.tolist(), labels, strict=True)]
    assert weighted.tolist() == pytest.approx(expected, rel=1e-5)
    shifted = BalancedCrossEntropy("logit_adjustment", 2.0, COUNTS)(logits, labels)
    moved = logits + 2.0 * torch.tensor([math.log(n / 1000) for n in COUNTS])
    assert torch.allclose(shifted, cross_entropy(moved, labels))


def test_a_class_without_labels_leaves_the_losses_finite():
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    for balance, strength in (("class_balanced", 0.9), ("logit_adjustment", 1.0)):
        assert BalancedCrossEntropy(balance, strength, [5, 5, 0])(logits, labels).isfinite().all()


def test_logit_adjustment_gives_rare_classes_their_due():
    """Trained on 95 : 5 the plain loss all but never answers the rare class, the adjusted one as if they were equal."""
    random = torch.Generator().manual_seed(0)
    labels = (torch.rand(2000, generator=random) < 0.05).long()
    points = torch.randn(2000, 1, generator=random) + labels[:, None].float()

    def recall_of_rare(balance):
        loss = BalancedCrossEntropy(balance, 1.0, torch.bincount(labels).tolist())
        layer = nn.Linear(1, 2)
        step = torch.optim.LBFGS(layer.parameters(), max_iter=100)

        def closure():
            step.zero_grad()
            value = loss(layer(points), labels).mean()
            value.backward()
            return value

        step.step(closure)
        return (layer(points).argmax(1) == 1)[labels == 1].float().mean().item()

    assert recall_of_rare("none") < 0.1
    assert recall_of_rare("logit_adjustment") == pytest.approx(0.69, abs=0.1)


@pytest.mark.parametrize(
    ("balance", "strength", "counts", "said"),
    [
        ("inverse", 1.0, COUNTS, "balance='inverse' is not one of: none, class_balanced, logit_adjustment"),
        ("class_balanced", 1.0, COUNTS, "balance_strength=1.0 of class_balanced must be at least 0 and below 1"),
        ("logit_adjustment", -1.0, COUNTS, "balance_strength=-1.0 of logit_adjustment"),
        ("logit_adjustment", 1.0, None, "balance=logit_adjustment needs counts"),
    ],
)
def test_wrong_balance(balance, strength, counts, said):
    with pytest.raises(ValueError, match=said):
        BalancedCrossEntropy(balance, strength, counts)


def test_neither_adds_to_a_checkpoint():
    plain, other = technique(), technique(uda=uda(), balance="class_balanced", balance_strength=0.9, counts={
        task: [1] * len(names) for task, names in CLASSES.items()
    })  # fmt: skip
    assert plain.state_dict().keys() == other.state_dict().keys()
