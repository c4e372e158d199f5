"""Losses for classes of unequal size: the counts of the training labels enter, the sampler stays plain."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.nn.losses import cross_entropy

Balance = Literal["none", "class_balanced", "logit_adjustment"]


class BalancedCrossEntropy(nn.Module):
    """Cross entropy of each sample that makes up for the sizes of the classes.

    `class_balanced` weighs a sample by the inverse of its class's effective number: w ∝ (1 − β) / (1 − βⁿ), scaled so
    that the mean weight of the training labels is 1 and the loss keeps its size. `logit_adjustment` adds τ log π to the
    logits, π the share of each class: the network then learns what remains when the frequencies are taken out, and
    answers without them.

    Reference: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019; Menon et al., Long-tail
    Learning via Logit Adjustment, 2021. The scale of the weights is ours (theirs sum to the number of classes).

    Args:
        balance: `none`, `class_balanced` or `logit_adjustment`.
        strength: β, from 0 to below 1, or τ, from 0 (1 is the paper's).
        counts: training labels of each class.

    Raises:
        ValueError: an unknown balance, a strength outside its range, or no counts to balance by.
    """

    def __init__(self, balance: str, strength: float, counts: Sequence[int] | None) -> None:
        super().__init__()
        if balance not in get_args(Balance):
            raise ValueError(f"balance={balance!r} is not one of: {', '.join(get_args(Balance))}.")
        highest = 1.0 if balance == "class_balanced" else float("inf")
        if not 0 <= strength < highest:
            raise ValueError(f"balance_strength={strength} of {balance} must be at least 0 and below {highest:g}.")
        if balance != "none" and not sum(counts or ()):
            raise ValueError(f"balance={balance} needs counts, the number of training labels of each class.")
        sizes = torch.tensor(counts or [1], dtype=torch.float64)
        self.weight: Tensor | None
        self.shift: Tensor | None
        # Not in checkpoints: they follow from the settings, and a probe may have other classes.
        weight = effective_weights(sizes, strength).float() if balance == "class_balanced" else None
        shift = log_prior(sizes, strength).float() if balance == "logit_adjustment" else None
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(
        self, logits: Float[Tensor, "b c"], labels: Int[Tensor, " b"], smoothing: float = 0.0
    ) -> Float[Tensor, " b"]:
        """The loss of each sample, 0 where the label is missing; not reduced."""
        if self.shift is not None:
            logits = logits.float() + self.shift
        losses = cross_entropy(logits, labels, smoothing)
        return losses if self.weight is None else losses * self.weight[labels.clamp(min=0)]


def effective_weights(counts: Float[Tensor, " c"], beta: float) -> Float[Tensor, " c"]:
    """Weight of each class by its effective number (1 − βⁿ) / (1 − β); their mean over all labels is 1."""
    weights = torch.where(counts > 0, (1 - beta) / (1 - beta**counts).clamp(min=1e-12), 0.0)
    return weights * (counts.sum() / (weights * counts).sum())


def log_prior(counts: Float[Tensor, " c"], tau: float) -> Float[Tensor, " c"]:
    """τ log π of each class; one without labels is taken to have half a one, so that its logit stays finite."""
    return tau * (counts.clamp(min=0.5) / counts.sum()).log()
