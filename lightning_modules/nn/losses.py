"""Losses that a paper has named or that two techniques share."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

MISSING = -1


def cross_entropy(
    logits: Float[Tensor, "b c"], labels: Int[Tensor, " b"], smoothing: float = 0.0
) -> Float[Tensor, " b"]:
    """Cross entropy of each sample, 0 where the label is missing.

    Not reduced, because what to divide by is the caller's to know: a batch may hold few labelled samples of a task, or
    none, and the ranks of a distributed run hold different numbers of them.

    loss = −Σ_c q_c log softmax(logits)_c  with  q = (1 − ε) · onehot(label) + ε / C

    Reference: label smoothing ε is from Szegedy et al., Rethinking the Inception Architecture, 2016, section 7.

    Args:
        logits: of any floating point type; computed in float32.
        labels: class ids, −1 where the label is missing.
        smoothing: ε in 0..1.
    """
    return F.cross_entropy(logits.float(), labels, ignore_index=MISSING, reduction="none", label_smoothing=smoothing)
