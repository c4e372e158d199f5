"""Decoding rules, re-derived with loops; what they are measured by; and the label map that they stand on."""

import math
from typing import Any

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_modules.nn import decoding
from lightning_modules.nn.decoding import RULES, Calibration, Said, chosen, padded
from lightning_modules.nn.label_map import LabelMap
from lightning_modules.nn.product_metrics import BINS, Energies, ProductScores

WIDTHS = (3, 1, 2)
BRAND_OF = [0, 0, 0, 1, 2, 2]


@pytest.fixture
def rows() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [3 * torch.randn(5, n) for n in WIDTHS]


def flat(scores: torch.Tensor) -> list[list[float]]:
    """The scores without the places that no product has."""
    return [[float(x) for e, n in enumerate(WIDTHS) for x in photo[e, :n]] for photo in scores.detach()]


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    shares = [math.exp(value - top) for value in values]
    return [share / sum(shares) for share in shares]


def by_loops(rows: list[torch.Tensor], learned: Calibration, rule: str, brands: torch.Tensor) -> list[list[float]]:
    """Probabilities as the docstrings define them."""
    found = []
    for at in range(5):
        z = [[float(x) for x in row[at]] for row in rows]
        p = [softmax(each) for each in z]
        r = softmax([float(x) for x in brands[at]])
        if rule == "raw":
            found.append([0.0 if len(each) == 1 else x for each in p for x in each])
        elif rule == "temperature":
            gamma = math.exp(learned.sharpness.item())
            tempered = [
                softmax([x / math.exp(t) for x in each])
                for each, t in zip(z, learned.temperature.tolist(), strict=True)
            ]
            powers = [(len(each) * x) ** gamma for each in tempered for x in each]
            found.append([x / sum(powers) for x in powers])
        elif rule == "energy":
            found.append(softmax([x for each in z for x in each]))
        elif rule == "scaled":
            units = zip(z, learned.scale.tolist(), learned.offset.tolist(), strict=True)
            found.append(softmax([x / math.exp(s) + b for each, s, b in units for x in each]))
        elif rule == "router":
            found.append([share * x for share, each in zip(r, p, strict=True) for x in each])
        elif rule == "two_step":
            found.append([share * x * (share == max(r)) for share, each in zip(r, p, strict=True) for x in each])
    return found


@pytest.mark.parametrize("rule", ["raw", "temperature", "energy", "scaled", "router", "two_step"])
def test_rules_are_what_they_say(rule: str, rows: list[torch.Tensor]) -> None:
    learned, brands = Calibration(3), torch.randn(5, 3)
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter.normal_()
    scores = RULES[rule][1](Said(padded(rows, 3), brands=brands), learned)
    expected = by_loops(rows, learned, rule, brands)
    assert torch.tensor(flat(scores.exp())) == pytest.approx(torch.tensor(expected), abs=1e-5)
    assert flat(scores.exp())[0] != flat(scores.exp())[1]


def test_an_expert_that_knows_strangers_gives_them_their_share(rows: list[torch.Tensor]) -> None:
    strange = torch.randn(5, 3)
    scores = decoding.other(padded(rows, 3), strange).exp()
    for e, row in enumerate(rows):
        whole = torch.cat([row, strange[:, e : e + 1]], 1).softmax(1)
        assert torch.allclose(scores[:, e, : row.shape[1]], whole[:, :-1], atol=1e-6)


def test_a_brand_of_one_product_cannot_win_by_the_raw_maximum() -> None:
    rows = [torch.tensor([[0.1, 0.0, 0.0]]), torch.tensor([[-9.0]]), torch.tensor([[0.0, 0.0]])]
    assert decoding.within(padded(rows, 3))[0, 1, 0].exp() == 1, "sure of itself whatever it sees"
    assert flat(decoding.raw(padded(rows, 3)).exp())[0][3] == 0
    assert int(decoding.raw(padded(rows, 3)).flatten(1).argmax()) != 3


def test_joint_calibration_repairs_what_own_brand_calibration_cannot() -> None:
    """An expert that is sure of itself on strangers too: its own photos say that it is right to be."""
    torch.manual_seed(0)
    products = torch.arange(200) % 4
    own = torch.nn.functional.one_hot(products, 4).float()
    loud, soft = 20 * own[:, :2] + torch.randn(200, 2) * 8, 1.5 * own[:, 2:] + torch.randn(200, 2) * 0.2
    logits, learned = padded([loud, soft], 2), Calibration(2)

    def right(rule: str) -> float:
        return (RULES[rule][1](Said(logits), learned).flatten(1).argmax(1) == products).float().mean().item()

    before = right("raw")
    optimiser = torch.optim.Adam(learned.parameters(), 0.05)
    for _ in range(300):
        losses = [
            torch.nn.functional.nll_loss(RULES[rule][1](Said(logits), learned).flatten(1), products)
            for rule in ("temperature", "scaled")
        ]
        optimiser.zero_grad()
        sum(losses).backward()  # type: ignore[union-attr]
        optimiser.step()
    assert right("temperature") > before + 0.1
    assert right("scaled") > 0.9
    assert learned.temperature[0] > learned.temperature[1]


def test_label_mapping_multiplies_what_the_mappings_say() -> None:
    tables = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 0, 1]])
    rows = [torch.randn(4, 3), torch.randn(4, 2)]
    product = rows[0].softmax(1)[:, tables[0]] * rows[1].softmax(1)[:, tables[1]]
    assert torch.allclose(decoding.mapped(rows, tables).exp(), product / product.sum(1, keepdim=True), atol=1e-6)
    certain = [torch.eye(3)[tables[0]] * 50, torch.eye(2)[tables[1]] * 50]
    assert decoding.mapped(certain, tables).argmax(1).tolist() == list(range(6))


def test_scores_are_counted_as_by_hand_however_they_come() -> None:
    torch.manual_seed(1)
    scores, truth = torch.randn(40, 6).mul(2).log_softmax(1), torch.randint(0, 6, (40,))
    truth[3] = -1
    brand_of, known = torch.tensor(BRAND_OF), truth >= 0
    whole, parts = ProductScores(brand_of), [ProductScores(brand_of) for _ in range(2)]
    whole.update(scores, truth)
    for rank, part in enumerate(parts):
        part.update(scores[rank::2], truth[rank::2])
    parts[0].hits += parts[1].hits
    parts[0].bins += parts[1].bins
    assert parts[0].compute() == whole.compute(), "sums of integers: the same to the last digit"
    found, guess, truth = whole.compute(), scores[known].argmax(1), truth[known]
    brand = brand_of[guess] == brand_of[truth]
    assert found["top1"] == pytest.approx((guess == truth).float().mean().item())
    assert found["brand"] == pytest.approx(brand.float().mean().item())
    assert found["right_brand"] == pytest.approx((guess == truth)[brand].float().mean().item())
    own = [
        max((i for i in range(6) if BRAND_OF[i] == BRAND_OF[t]), key=row.__getitem__)
        for row, t in zip(scores[known].tolist(), truth, strict=True)
    ]
    assert found["known_brand"] == pytest.approx((torch.tensor(own) == truth).float().mean().item())
    assert found["top5"] == pytest.approx(
        (scores[known].topk(5).indices == truth[:, None]).any(1).float().mean().item()
    )
    theirs = multiclass_calibration_error(scores[known].exp(), truth, 6, BINS, "l1").item()
    assert found["ece"] == pytest.approx(theirs, abs=1e-5)
    parts[0].reset()
    parts[0].update(scores[3:4], torch.tensor([-1]))
    assert parts[0].compute() == {}, "a photo whose product is not known is not counted"


def test_energies_are_quantiles_of_all_photos() -> None:
    metric = Energies()
    for part in torch.arange(101.0).flip(0).split(7):
        metric.update(part)
    assert metric.compute().tolist() == pytest.approx(list(range(101)))


def test_a_rule_that_cannot_be_had_is_refused() -> None:
    assert chosen("raw", ["raw"]) == "raw"
    with pytest.raises(ValueError, match=r"decoding='rw' is not one of raw, temperature"):
        chosen("rw", ["raw"])
    with pytest.raises(ValueError, match=r"decoding=other needs experts trained with others above 0.*there are raw"):
        chosen("other", ["raw"])


PRODUCTS = ["A/1", "A/2", "B/1", "C/1", "C/2"]


def expert(brand: str, **facts: Any) -> dict[str, Any]:
    products = [name for name in PRODUCTS if name.startswith(brand)]
    return {
        "name": brand,
        "trunk": 0,
        "facts": {"brand": brand, "products": products, "others": [], "trained_on": []} | facts,
    }


def label_map(*experts: dict[str, Any], held_out: tuple[str, ...] = ()) -> LabelMap:
    return LabelMap(experts, PRODUCTS, [0, 0, 1, 2, 2], ["A", "B", "C"], held_out)


def test_experts_come_in_any_order_and_may_not_know_all_strangers() -> None:
    found = label_map(expert("C", others=["A", "B"]), expert("A", others=["B"]), expert("B"))
    assert found.order == [1, 2, 0]
    assert found.widths == [2, 1, 2]
    assert found.places.tolist() == [0, 1, 2, 4, 5]
    assert found.unseen == {"C": [], "A": ["C"]}


@pytest.mark.parametrize(
    ("experts", "said"),
    [
        ([expert("A"), expert("B")], r"no expert knows C: train what is missing \(only="),
        ([expert("A"), expert("A"), expert("B"), expert("C")], "A has two experts"),
        ([expert("A"), expert("B"), expert("C"), expert("a")], "an expert of a, of which the data have no photo"),
        (
            [expert("A"), expert("B"), expert("C", products=["C/1", "C/9"])],
            "another version of the data .1 new, first C/2; 1 gone, first C/9",
        ),
        (
            [expert("A"), expert("B"), expert("C", trained_on=["x.jpg", "y.jpg"])],
            r"expert of C was trained on 1 photo\(s\) that are held out here, first y.jpg",
        ),
        ([expert("A"), expert("B"), {"name": "whole", "trunk": 0, "facts": {}}], "whole learned no brand"),
    ],
)
def test_experts_that_do_not_fit_the_data_are_refused(experts: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        label_map(*experts, held_out=("y.jpg", "z.jpg"))
