"""BrandExperts: members joined as they were, what one run measures, what an answer says, who does not fit."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_modules.brand_experts import BrandExperts
from lightning_modules.nn.trunks import Trunks, resized
from tests.toy_fashion import optimiser

BRANDS, BRAND_OF = ["A", "B", "C"], [0, 0, 0, 1, 2, 2]
PRODUCTS = ["A/1", "A/2", "A/3", "B/1", "C/1", "C/2"]
CLASSES = {"product": PRODUCTS, "brand": BRANDS}


class Means(nn.Module):
    """Features: the mean of each channel, times a number of its own."""

    features = 3

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))
        self.side = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.side = image.shape[-1]
        scaled = image if image.is_floating_point() else image.float() / 255
        return scaled.mean((2, 3)) * self.factor


def member(brand: str, trunk: int, **facts: Any) -> dict[str, Any]:
    own = [name for name in PRODUCTS if name.startswith(brand)]
    found = {"brand": brand, "products": own, "others": sorted(set(BRANDS) - {brand}), "trained_on": []} | facts
    classes = {"product": own + (["(other brands)"] if found["others"] else [])}
    return {"name": brand.lower(), "trunk": trunk, "facts": {"classes": classes} | found}


def whole(name: str, **facts: Any) -> dict[str, Any]:
    return {"name": name, "trunk": 2, "facts": {"classes": CLASSES, "trained_on": []} | facts}


def settings(**changes: Any) -> dict[str, Any]:
    sides = (8, 8, 6)
    found: dict[str, Any] = {
        "trunks": [{"encoder": Means(), "side": side} for side in sides],
        "experts": [member("C", 1), member("A", 0), member("B", 0)],
        "router": [whole("router")], "whole": [whole("whole")],
        "mappings": [
            whole(f"{m}", products=PRODUCTS, mapping=[i % m for i in range(6)], classes={"product": list("abc"[:m])})
            for m in (2, 3)
        ],
        "classes": CLASSES, "brand_of": BRAND_OF, "held_out": [], "decoding": "scaled", "optimiser": optimiser(),
    }  # fmt: skip
    return found | changes


def joined(seed: int = 0, **changes: Any) -> BrandExperts:
    torch.manual_seed(seed)
    return BrandExperts(**settings(**changes)).eval()


def batch(size: int = 12) -> dict[str, Any]:
    random = torch.Generator().manual_seed(0)
    products = torch.arange(size) % 6
    image = torch.randint(0, 255, (size, 3, 8, 8), generator=random, dtype=torch.uint8)
    labels = {"product": products, "brand": torch.tensor(BRAND_OF)[products]}
    return {"image": image, "labels": labels, "index": torch.arange(size)}


def evaluate(module: BrandExperts, split: str = "val") -> dict[str, float]:
    module.reset_metrics(split)
    with torch.no_grad():
        for at in range(0, 12, 5):
            part = {
                k: {t: y[at : at + 5] for t, y in v.items()} if isinstance(v, dict) else v[at : at + 5]
                for k, v in batch().items()
            }
            module.step(part, split)
        return module.results(split)


def test_every_rule_is_measured_in_one_run_and_one_answers() -> None:
    module = joined()
    assert module.rules == ["raw", "temperature", "energy", "scaled", "other", "router", "two_step", "whole", "mapping"]
    results = evaluate(module)
    for rule in module.rules:
        assert 0 <= results[f"val/{rule}/top1"] <= results[f"val/{rule}/top5"] <= 1
        assert results[f"val/{rule}/brand"] >= results[f"val/{rule}/top1"]
    assert results["val/top1"] == results["val/scaled/top1"]
    assert results["val/two_step/known_brand"] == results["val/energy/known_brand"], (
        "within a brand experts agree with themselves"
    )
    assert evaluate(joined(decoding="whole"))["val/top1"] == results["val/whole/top1"]


def test_members_weights_are_taken_over_in_the_brands_order() -> None:
    module, random = joined(), torch.Generator().manual_seed(5)

    def head(classes: int) -> dict[str, torch.Tensor]:
        return {
            "head.weight": torch.randn(classes, 3, generator=random),
            "head.bias": torch.randn(classes, generator=random),
        }

    states = {
        "trunks": [{"factor": torch.tensor([float(at + 2)])} for at in range(3)],
        "experts": [head(3), head(4), head(2)], "router": [head(3)], "whole": [head(6)], "mappings": [head(2), head(3)],
    }  # fmt: skip
    module.join(states)
    images = batch()["image"]
    said = module.listen(module.encode({"image": images}))
    means = images.float().mean((2, 3)) / 255
    for brand, (place, factor) in enumerate([(1, 2.0), (2, 2.0), (0, 3.0)]):  # A and B share trunk 0, C has trunk 1
        expected = means * factor @ states["experts"][place]["head.weight"].T + states["experts"][place]["head.bias"]
        width = module.map.widths[brand]
        assert torch.allclose(said.own[:, brand, :width], expected[:, :width], atol=1e-5)
        assert torch.allclose(said.strange[:, brand], expected[:, -1], atol=1e-5)  # type: ignore[index]
    states["whole"] = [{"heads.product.weight": torch.zeros(6, 3)}]
    with pytest.raises(ValueError, match=r"joins.whole: whole is no classifier of one task"):
        module.join(states)


def test_only_the_calibration_learns_and_it_helps() -> None:
    module = joined(seed=3)
    parameters = list(module.calibration.parameters())
    before, learning = evaluate(module)["val/loss"], torch.optim.Adam(parameters, 0.1)
    for _ in range(100):
        loss = module.step(batch(), "train")["loss"]
        learning.zero_grad()
        loss.backward()
        learning.step()
    assert all(parameter.grad is not None for parameter in parameters)
    assert evaluate(module)["val/loss"] < before - 0.01


def test_unlabelled_photos_count_nowhere() -> None:
    module, photos = joined(), batch()
    photos["labels"]["product"][:6] = -1
    photos["labels"]["brand"][:6] = -1
    module.reset_metrics("test")
    with torch.no_grad():
        module.step(photos, "test")
        half = module.step({**photos, "labels": {t: y.clone() for t, y in photos["labels"].items()}}, "train")["loss"]
        known = module.step(
            {k: {t: y[6:] for t, y in v.items()} if isinstance(v, dict) else v[6:] for k, v in photos.items()}, "train"
        )
    assert module.metrics["test"]["rules"]["raw"].hits[0] == 6
    assert float(half) == pytest.approx(float(known["loss"]))


def test_an_answer_names_product_brand_each_experts_best_and_what_is_strange() -> None:
    module = joined()
    evaluate(module)
    answers = module.answers({"image": batch()["image"]}, 2)
    assert len(answers) == 12
    for each in answers:
        assert [len(each[key]) for key in ("product", "brand", "an expert's own best")] == [2, 2, 2]
        assert sum(p for _, p in module.answers({"image": batch()["image"][:1]}, 9)[0]["brand"]) == pytest.approx(
            1, abs=1e-5
        )
        assert not any(name.startswith("B/") for name, _ in each["an expert's own best"]), (
            "sure of its one product, barred"
        )
    assert any(each["familiar"][0][0] == "yes" for each in answers)
    module.familiar.fill_(1e6)
    assert module.answers({"image": batch()["image"]}, 1)[0]["familiar"] == [
        ("NO: unlike all products that are known", 0.0)
    ]


def test_what_shows_less_evidence_than_any_known_product_is_said_to_be_unfamiliar() -> None:
    """Experts whose evidence is light: photos have some, a black picture has none."""
    module = joined()
    for heads in module.heads.values():
        for head in heads:
            nn.init.constant_(head.weight, 5.0)
            nn.init.zeros_(head.bias)
    evaluate(module)
    black = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    (answer,) = module.answers({"image": black}, 3)
    assert answer["familiar"] == [("NO: unlike all products that are known", 0.0)]
    known = module.answers({"image": batch()["image"]}, 3)
    assert sum(each["familiar"][0][0] == "yes" for each in known) >= 11, "of twelve, which the limit was learned from"


def test_each_trunk_sees_its_own_size() -> None:
    small, large = Means(), Means()
    trunks = Trunks([{"encoder": small, "side": 4}, {"encoder": large, "side": 8}])
    images = torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8)
    features = trunks(images)
    assert (small.side, large.side, features.shape) == (4, 8, (2, 6))
    assert torch.allclose(features[:, :3], features[:, 3:], atol=0.1)
    assert resized(images, 8) is images


def test_an_embedding_counts_every_network_alike() -> None:
    module = joined()
    module.encoder.members[0].factor.data.fill_(100.0)
    parts = module.embed({"image": batch()["image"]}).split(3, 1)
    assert all(torch.allclose(part.norm(dim=1), torch.ones(12)) for part in parts)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"experts": None}, "there are no experts: say with joins.experts"),
        ({"decoding": "router", "router": []}, "decoding=router needs joins.router"),
        (
            {"whole": [whole("whole", classes={"product": PRODUCTS[:5], "brand": BRANDS})]},
            "whole learned other products",
        ),
        ({"whole": [whole("whole", trained_on=["x.jpg"])], "held_out": ["x.jpg"]}, "whole was trained on 1 photo"),
        ({"experts": [member("A", 0), member("B", 0)]}, "no expert knows C"),
        (
            {"experts": [member("A", 0, others=[]), member("B", 0), member("C", 1)], "decoding": "other"},
            "decoding=other needs experts",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        joined(**changes)


def test_an_expert_says_which_strangers_it_never_saw() -> None:
    with pytest.warns(UserWarning, match="the expert of A never saw C as strangers, which joined later"):
        joined(experts=[member("A", 0, others=["B"]), member("B", 0), member("C", 1)])
