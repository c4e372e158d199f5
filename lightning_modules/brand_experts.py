"""Many experts, one answer: networks that each learned one brand's products are joined by a decoding rule."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_modules.base import Answer, Batch, Technique, likeliest, mean_over_ranks
from lightning_modules.nn.decoding import RULES, Calibration, Said, chosen, padded
from lightning_modules.nn.heads import TaskDict
from lightning_modules.nn.label_map import LabelMap, Member, refuse_leak
from lightning_modules.nn.losses import MISSING
from lightning_modules.nn.metrics import ExactMean
from lightning_modules.nn.product_metrics import Energies, ProductScores
from lightning_modules.nn.trunks import Trunks
from lightning_modules.optimisers import Optimiser

PRODUCT, BRAND = "product", "brand"
Members = Sequence[Member]


class BrandExperts(Technique):
    """Experts that never saw each other's products name a product together.

    Each expert's classes are its own brand's products, and one of them is always the likeliest, so the plain maximum
    over all experts believes whoever speaks most surely. All that is trained here is what makes their scores
    comparable, a few numbers an expert, on photos of all brands that no expert has learned from; the experts stay as
    they are. Every rule that the members allow is measured, one of them answers.

    loss = − mean log P_temperature(y) − mean log P_scaled(y), see `nn.decoding`

    Args:
        trunks: {"encoder", "side"} of the networks; members whose trunks are equal share one.
        experts: members that learned one brand each; null in YAML, like all others, filled in by `joins`.
        router: one member that learned the brands; None or [] is none, and the rules that need it are left out.
        whole: one member that learned all products at once: the baseline.
        mappings: members that learned all products under a label mapping each.
        classes: {"product": names, "brand": names} of the data.
        brand_of: brand of each product.
        held_out: photos of the data that judge or calibrate.
        decoding: the rule that answers, and whose figures stand without a rule's name.
        optimiser: of the calibration.

    Attributes:
        heads: a linear layer for each member, by kind.
        metrics: {split: {"loss", "rules": {rule: ...}, "confusion": {"brand": ...}}}.

    Raises:
        ValueError: members and data do not fit each other, or the rule cannot be had.
    """

    encoder: Trunks
    heads: Any  # nn.ModuleDict of nn.ModuleLists, whose items type checkers take for plain modules
    brand_of: Tensor
    familiar: Tensor

    def __init__(
        self,
        trunks: Sequence[Mapping[str, Any]] | None,
        experts: Members | None,
        router: Members | None,
        whole: Members | None,
        mappings: Members | None,
        classes: Mapping[str, Sequence[str]] | None,
        brand_of: Sequence[int] | None,
        held_out: Sequence[str] | None,
        decoding: str,
        optimiser: Optimiser,
    ) -> None:
        super().__init__(optimiser)
        if not (trunks and experts and classes and brand_of):
            raise ValueError("there are no experts: say with joins.experts where those that have been trained are")
        self.classes = {task: [str(name) for name in classes[task]] for task in (PRODUCT, BRAND)}
        self.map = LabelMap(experts, self.classes[PRODUCT], brand_of, self.classes[BRAND], held_out or ())
        self.members: dict[str, list[Member]] = {
            "experts": [experts[at] for at in self.map.order], "router": list(router or ()),
            "whole": list(whole or ()), "mappings": list(mappings or ()),
        }  # fmt: skip
        self._check_others(held_out or ())
        self.encoder = Trunks(trunks)
        self.heads = nn.ModuleDict({kind: nn.ModuleList(self._heads(each)) for kind, each in self.members.items()})
        self.calibration = Calibration(len(experts))
        self.decoding = chosen(decoding, self.rules)
        self.register_buffer("familiar", torch.zeros(Energies.QUANTILES))
        self.register_buffer("brand_of", torch.tensor(brand_of), persistent=False)
        self.metrics = nn.ModuleDict({split: self._measures() for split in ("val", "test")})

    def _check_others(self, held_out: Sequence[str]) -> None:
        """Members beside the experts must have learned from the same data; experts say which strangers they know."""
        for kind in ("router", "whole", "mappings"):
            for member in self.members[kind]:
                refuse_leak(f"joins.{kind}: {member['name']}", member, held_out)
                theirs = member["facts"].get("products", member["facts"]["classes"][PRODUCT])
                if list(theirs) != self.classes[PRODUCT]:
                    raise ValueError(f"joins.{kind}: {member['name']} learned other products than the data have now")
        for brand, strangers in self.map.unseen.items():
            if strangers:
                named = ", ".join(strangers[:3])
                rank_zero_warn(
                    f"the expert of {brand} never saw {named} as strangers, which joined later: rule `other`"
                )

    def _heads(self, members: Members) -> Iterator[nn.Linear]:
        for member in members:
            task = BRAND if member in self.members["router"] else PRODUCT
            yield nn.Linear(self.encoder.widths[member["trunk"]], len(member["facts"]["classes"][task]))

    @property
    def rules(self) -> list[str]:
        """The decoding rules that the members allow."""
        there = {
            "own": True, "strange": all(member["facts"]["others"] for member in self.members["experts"]),
            "brands": self.members["router"], "whole": self.members["whole"], "mapped": self.members["mappings"],
        }  # fmt: skip
        return [rule for rule, (need, _) in RULES.items() if there[need]]

    def _measures(self) -> nn.ModuleDict:
        rules = nn.ModuleDict({rule: ProductScores(self.brand_of) for rule in self.rules})
        confusion = MulticlassConfusionMatrix(len(self.classes[BRAND]), ignore_index=MISSING, validate_args=False)
        found = {"loss": ExactMean(), "rules": rules, "confusion": TaskDict({BRAND: confusion}), "energies": Energies()}
        return nn.ModuleDict(found)

    def join(self, states: Mapping[str, Sequence[Mapping[str, Tensor]]]) -> None:
        """Takes the members' weights over: of each trunk, and of each head under its name in a classifier.

        Raises:
            ValueError: a member has no such head.
        """
        for trunk, state in zip(self.encoder.members, states["trunks"], strict=True):
            trunk.load_state_dict(state)
        for kind, members in self.members.items():
            given = list(states.get(kind, ()))
            ordered = [given[at] for at in self.map.order] if kind == "experts" else given
            for head, state, member in zip(self.heads[kind], ordered, members, strict=True):
                own = {key.removeprefix("head."): value for key, value in state.items() if key.startswith("head.")}
                if not own:
                    raise ValueError(f"joins.{kind}: {member['name']} is no classifier of one task, it has no `head`")
                head.load_state_dict(own)

    def listen(self, features: Tensor) -> Said:
        """What every member says."""
        parts = self.encoder.parts(features)
        said = {
            kind: [
                head(parts[member["trunk"]].to(head.weight.dtype)).float()
                for head, member in zip(heads, self.members[kind], strict=True)
            ]
            for kind, heads in self.heads.items()
        }
        widths, experts = self.map.widths, said["experts"]
        tables = [member["facts"]["mapping"] for member in self.members["mappings"]]
        return Said(
            own=padded([row[:, :n] for row, n in zip(experts, widths, strict=True)], max(widths)),
            strange=torch.stack([row[:, -1] for row in experts], 1) if "other" in self.rules else None,
            brands=next(iter(said["router"]), None),
            whole=next(iter(said["whole"]), None),
            mapped=(said["mappings"], torch.tensor(tables, device=features.device)) if tables else None,
        )

    def decode(self, said: Said, rules: Iterable[str]) -> dict[str, Tensor]:
        """{rule: log of the probability (B, products) that it claims for each product}."""
        scores = {rule: RULES[rule][1](said, self.calibration) for rule in rules}
        places = self.map.places.to(said.own.device)
        return {rule: each if each.ndim == 2 else each.flatten(1)[:, places] for rule, each in scores.items()}

    def step(self, batch: Batch, split: str) -> dict[str, Any]:
        """The calibration's loss, or in evaluation that of the rule that answers; and what callbacks read."""
        said, labels = self.listen(self.encode(batch)), batch["labels"]
        scores = self.decode(said, ("temperature", "scaled") if split == "train" else self.rules)
        known, truth = labels[PRODUCT] != MISSING, labels[PRODUCT].clamp(min=0)
        losses = {rule: F.nll_loss(each, truth, reduction="none") * known for rule, each in scores.items()}
        if split == "train":
            count = mean_over_ranks(known.sum().float()).clamp(min=1e-9)
            return {"loss": (losses["temperature"] + losses["scaled"]).sum() / count}
        self._measure(split, scores, losses[self.decoding], labels)
        self.metrics[split]["energies"].update(said.own.flatten(1).logsumexp(1))
        answer = scores[self.decoding].float()
        return {
            "loss": losses[self.decoding].sum() / known.sum().clamp(min=1),
            "logits": {PRODUCT: answer, BRAND: self.brands(answer)},
            "labels": labels,
            "index": batch["index"],
        }

    def _measure(self, split: str, scores: Mapping[str, Tensor], losses: Tensor, labels: Batch) -> None:
        metrics = self.metrics[split]
        metrics["loss"].update(losses, labels[PRODUCT] != MISSING)
        for rule, each in scores.items():
            metrics["rules"][rule].update(each, labels[PRODUCT])
        guess = self.brand_of[scores[self.decoding].argmax(1)]
        metrics["confusion"][BRAND].update(guess, labels[BRAND])

    def brands(self, scores: Tensor) -> Tensor:
        """Log of each brand's probability (B, brands): that of its products together."""
        shares = torch.zeros(len(scores), len(self.classes[BRAND]), device=scores.device)
        return shares.index_add_(1, self.brand_of, scores.float().exp()).log()

    def results(self, split: str) -> dict[str, float]:
        """Figures of the rule that answers (`val/top1`), and of every rule under its name (`val/raw/top1`)."""
        metrics = self.metrics[split]
        found = {rule: metric.compute() for rule, metric in metrics["rules"].items()}
        if not found[self.decoding]:
            return {}
        if split == "val":
            self.familiar.copy_(metrics["energies"].compute())
        own = found[self.decoding] | {"loss": metrics["loss"].compute().item()}
        named = {f"{rule}/{key}": value for rule, each in found.items() for key, value in each.items()}
        return {f"{split}/{key}": value for key, value in (own | named).items()}

    def embed(self, batch: Batch) -> Tensor:
        """What similar products are found by: each network's features count alike, however long they are."""
        return torch.cat([F.normalize(part, dim=1) for part in self.encoder.parts(self.encode(batch))], 1)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """`logits` by task, and `index`; needs no labels."""
        scores = self.decode(self.listen(self.encode(batch)), [self.decoding])[self.decoding].float()
        return {"logits": {PRODUCT: scores, BRAND: self.brands(scores)}, "index": batch["index"]}

    @torch.no_grad()
    def answers(self, batch: Batch, top_k: int) -> list[Answer]:
        """For each image the likeliest products and brands, what the surest experts say, and how familiar it looks.

        What is familiar is the share of known products' photos that look stranger than this image.
        """
        said = self.listen(self.encode(batch))
        scores = self.decode(said, {self.decoding, "raw"})
        products = scores[self.decoding].float().exp()
        columns = {
            PRODUCT: likeliest(products, self.classes[PRODUCT], top_k),
            BRAND: likeliest(self.brands(scores[self.decoding]).exp(), self.classes[BRAND], top_k),
            "an expert's own best": self._own_best(scores["raw"], top_k),
            "familiar": [self._familiar(value) for value in said.own.flatten(1).logsumexp(1).tolist()],
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _own_best(self, raw: Tensor, top_k: int) -> list[list[tuple[str, float]]]:
        """What the source shows: the best product of each of the surest experts, with that expert's own probability."""
        rows = []
        for row in raw.exp():
            best = torch.zeros(len(self.classes[BRAND]), device=row.device).scatter_reduce_(
                0, self.brand_of, row, "amax"
            )
            surest = best.topk(min(top_k, len(best)))
            places = [int(torch.where(self.brand_of == brand, row, -1.0).argmax()) for brand in surest.indices]
            rows.append([(self.classes[PRODUCT][at], float(row[at])) for at in places])
        return rows

    def _familiar(self, energy: float) -> list[tuple[str, float]]:
        share = float((self.familiar < energy).sum()) / len(self.familiar)
        return [("yes" if share > 0.02 else "NO: unlike all products that are known", share)]
