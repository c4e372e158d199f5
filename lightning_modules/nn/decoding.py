"""From the logits of many experts to one answer: which product of which brand, and how surely.

Each expert knows the products of its own brand alone, and a softmax over these is sure of itself on anything. So its
probabilities cannot be held against another's: the rules below differ in what makes them comparable.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

LAST = -1e3  # a probability of 0, behind all others and still in order
FAR = -1e9  # the logit of what cannot be: finite, so that gradients stay numbers


class Said(NamedTuple):
    """What all networks say of a batch of images, as logits; None for a kind that is not there.

    Attributes:
        own: of each brand's products by its expert, filled up with `FAR` to the widest brand.
        strange: of "a product of another brand" by each expert.
        brands: of the brands by a classifier of brands.
        whole: of all products by one classifier.
        mapped: of the classes of each label mapping, and which class each product is.
    """

    own: Float[Tensor, "b n k"]
    strange: Float[Tensor, "b n"] | None = None
    brands: Float[Tensor, "b n"] | None = None
    whole: Float[Tensor, "b p"] | None = None
    mapped: tuple[Sequence[Tensor], Int[Tensor, "j p"]] | None = None


class Calibration(nn.Module):
    """The few numbers that are learned on photos of all brands to make experts comparable.

    A temperature fitted on an expert's own brand cures nothing: strangers are not among the photos. These are fitted to
    the likelihood of the right product among those of all experts, on photos of all brands.

    Args:
        experts: how many.

    Attributes:
        temperature: log T_e of the rule `temperature`.
        sharpness: log γ, one for all.
        scale: log of the temperature of the rule `scaled`.
        offset: b_e of it.
    """

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.temperature, self.scale, self.offset = (nn.Parameter(torch.zeros(experts)) for _ in range(3))
        self.sharpness = nn.Parameter(torch.zeros(1))


def padded(rows: Sequence[Float[Tensor, "b _"]], width: int) -> Float[Tensor, "b n k"]:
    """The logits of experts of different size as one tensor."""
    return torch.stack([F.pad(row.float(), (0, width - row.shape[1]), value=FAR) for row in rows], 1)


def within(logits: Float[Tensor, "b n k"]) -> Float[Tensor, "b n k"]:
    """The log of p_e(i): each expert's softmax over the products of its own brand."""
    return logits.log_softmax(2)


def jointly(scores: Float[Tensor, "b n k"]) -> Float[Tensor, "b n k"]:
    """The log of one distribution over the products of all brands."""
    return scores.flatten(1).log_softmax(1).view_as(scores)


def raw(logits: Float[Tensor, "b n k"]) -> Float[Tensor, "b n k"]:
    """The source's rule: the product of the highest probability over all experts, p_e(i).

    An expert of a single product says 1 whatever it sees; it is barred.
    """
    alone = (logits > FAR / 2).sum(2, keepdim=True) == 1
    return within(logits).masked_fill(alone, FAR)


def tempered(logits: Float[Tensor, "b n k"], calibration: Calibration) -> Float[Tensor, "b n k"]:
    """P(e, i) ∝ (K_e p_e(i; T_e))^γ: the raw rule with temperatures, each p held against guessing among K_e products.

    Without K_e an expert that knows nothing would win by knowing few products; with γ = 1 and without K_e all brands
    would be equally likely whatever is seen.
    """
    temperature, sharpness = calibration.temperature.exp(), calibration.sharpness.exp()
    products = (logits > FAR / 2).sum(2, keepdim=True)
    return jointly(sharpness * (within(logits / temperature[None, :, None]) + products.log()))


def energy(logits: Float[Tensor, "b n k"]) -> Float[Tensor, "b n k"]:
    """P(e, i) ∝ exp z_e,i: within a brand as ever, between brands by the free energy log Σ exp z.

    Reference: Liu et al., Energy-based Out-of-distribution Detection, 2020.
    """
    return jointly(logits)


def scaled(logits: Float[Tensor, "b n k"], calibration: Calibration) -> Float[Tensor, "b n k"]:
    """P(e, i) ∝ exp(z_e,i / T_e + b_e): energies, each expert's in units of its own that were learned jointly."""
    units = calibration.scale.exp()[None, :, None]
    return jointly(logits / units + calibration.offset[None, :, None])


def other(logits: Float[Tensor, "b n k"], strange: Float[Tensor, "b n"]) -> Float[Tensor, "b n k"]:
    """The log of p_e(i) where "a product of another brand" is a class: an expert may say that it is none of its."""
    total = torch.logaddexp(logits.logsumexp(2), strange)
    return logits - total[:, :, None]


def router(logits: Float[Tensor, "b n k"], brands: Float[Tensor, "b n"]) -> Float[Tensor, "b n k"]:
    """P(e, i) = r(e) p_e(i): a classifier of brands says whose expert is to be believed, and how far."""
    return brands.log_softmax(1)[:, :, None] + within(logits)


def two_step(logits: Float[Tensor, "b n k"], brands: Float[Tensor, "b n"]) -> Float[Tensor, "b n k"]:
    """First the brand, then the product within it: the others' come last, however surely their experts speak."""
    best = F.one_hot(brands.argmax(1), brands.shape[1])
    return router(logits, brands) + LAST * (1 - best)[:, :, None]


def mapped(logits: Sequence[Float[Tensor, "b _"]], tables: Int[Tensor, "j p"]) -> Float[Tensor, "b p"]:
    """Label mapping: P(i) ∝ Π_j p_j(f_j(i)); product i is class f_j(i) of the j-th network.

    Reference: Zhang et al., Large scale classification in deep neural network with Label Mapping, 2018.
    """
    shares = [row.float().log_softmax(1)[:, table] for row, table in zip(logits, tables, strict=True)]
    return torch.stack(shares).sum(0).log_softmax(1)


Rule = Callable[[Any, Calibration], Tensor]  # of a `Said` that has what the rule needs

RULES: dict[str, tuple[str, Rule]] = {  # what each needs, and its log-probabilities
    "raw": ("own", lambda said, learned: raw(said.own)),
    "temperature": ("own", lambda said, learned: tempered(said.own, learned)),
    "energy": ("own", lambda said, learned: energy(said.own)),
    "scaled": ("own", lambda said, learned: scaled(said.own, learned)),
    "other": ("strange", lambda said, learned: other(said.own, said.strange)),
    "router": ("brands", lambda said, learned: router(said.own, said.brands)),
    "two_step": ("brands", lambda said, learned: two_step(said.own, said.brands)),
    "whole": ("whole", lambda said, learned: said.whole.log_softmax(1)),
    "mapping": ("mapped", lambda said, learned: mapped(*said.mapped)),
}
CURES = {
    "strange": "experts trained with others above 0", "brands": "joins.router, a classifier of brands",
    "whole": "joins.whole, a classifier of all products", "mapped": "joins.mappings, networks of the label mappings",
}  # fmt: skip


def chosen(rule: str, there: Sequence[str]) -> str:
    """The rule that answers.

    Raises:
        ValueError: there is none of that name, or the networks that are `there` do not allow it.
    """
    if rule not in RULES:
        raise ValueError(f"decoding={rule!r} is not one of {', '.join(RULES)}")
    if rule not in there:
        raise ValueError(f"decoding={rule} needs {CURES[RULES[rule][0]]}; without it there are {', '.join(there)}")
    return rule
