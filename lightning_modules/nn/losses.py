"""Losses that a paper has named or that two techniques share."""

from collections.abc import Iterator
from typing import Any

import torch
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


def mean_softmax_loss(
    logits: Float[Tensor, "b c"], tags: Int[Tensor, " t"], offsets: Int[Tensor, " b+1"], overwrite: bool = False
) -> Float[Tensor, " b"]:
    """Mean softmax loss of each image over its tags, 0 for an image without tags; not reduced, as above.

    The target is a few tags of many thousands, so it stays a list of ids. The softmax is written once, a few rows at a
    time, into one buffer of the logits' size, which backward turns into the gradient: nothing else of that size exists.

    loss_i = −(1 / n_i) Σ_t log softmax(logits_i)[tag_it]

    Reference: Kim and Kim, Improving a CNN-based Image Annotation System Using Multi-Labeled Images, formula (1).

    Args:
        logits: of any floating point type; computed in float32, or in float64 if they are that.
        tags: ids, the first image's, then the second's, and so on. One that stands twice counts twice.
        offsets: the tags of image i are `tags[offsets[i]:offsets[i + 1]]`.
        overwrite: let the buffer be the logits' own memory: after the call they hold something else. For a caller who
            needs them no more; autograd refuses to go on if another node did.

    Raises:
        ValueError: an id that is not in 0..c − 1, offsets that do not fit, or a leaf tensor to overwrite. On a GPU ids
            are looked at without waiting for the answer, and a wrong one is torch's error a little later.
    """
    check_tags(logits, tags, offsets)
    counts = offsets.diff()
    image = torch.repeat_interleave(torch.arange(len(logits), device=tags.device), counts, output_size=len(tags))
    if torch.is_grad_enabled() and logits.requires_grad:
        if overwrite and logits.is_leaf:
            raise ValueError("overwrite=True would destroy a leaf tensor: it is for logits that a layer computed.")
        return MeanSoftmaxLoss.apply(logits, tags, image, counts, overwrite)
    log_probabilities = spread(logits, tags, image, None)
    return over_images(log_probabilities, image, counts)


class MeanSoftmaxLoss(torch.autograd.Function):
    """`mean_softmax_loss` with a backward that writes the gradient over the softmax."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Float[Tensor, "b c"],
        tags: Int[Tensor, " t"],
        image: Int[Tensor, " t"],
        counts: Int[Tensor, " b"],
        overwrite: bool,
    ) -> Float[Tensor, " b"]:
        buffer = logits if overwrite else torch.empty_like(logits)
        log_probabilities = spread(logits, tags, image, buffer)
        # Where an image has a tag, softmax − target is kept apart, unrounded: near 1 − 1 there is nothing left of it in
        # bfloat16. How often a tag stands there is its number of equals among the sorted places.
        places = image * logits.shape[1] + tags
        ordered = places.sort().values
        times = torch.searchsorted(ordered, places, right=True) - torch.searchsorted(ordered, places)
        corrections = log_probabilities.exp() - times.to(log_probabilities.dtype) / counts[image]
        ctx.save_for_backward(buffer, tags, image, counts, corrections)
        ctx.spent = False
        return over_images(log_probabilities, image, counts)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, " b"]) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("mean_softmax_loss has no second derivative: it cannot be used with create_graph=True.")
        if ctx.spent:
            raise RuntimeError("mean_softmax_loss goes backward once, its memory is the gradient now: call it again.")
        ctx.spent = True
        buffer, tags, image, counts, corrections = ctx.saved_tensors
        gradient = buffer.detach()
        scale = torch.where(counts > 0, grad, 0.0).to(corrections.dtype)
        for rows in blocks(gradient):
            gradient[rows].mul_(scale[rows, None])
        gradient[image, tags] = (corrections * scale[image]).to(gradient.dtype)
        return gradient, None, None, None, None


def spread(
    logits: Float[Tensor, "b c"], tags: Int[Tensor, " t"], image: Int[Tensor, " t"], buffer: Float[Tensor, "b c"] | None
) -> Float[Tensor, " t"]:
    """Log probabilities of the tags of the images; the softmax of all goes into `buffer`, which may be the logits."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    scores = logits.detach()[image, tags].to(dtype)
    highest, likeliest = (torch.empty(len(logits), dtype=dtype, device=logits.device) for _ in range(2))
    for rows in blocks(logits):
        block = logits[rows].detach().to(dtype)
        probabilities = block.softmax(1)
        highest[rows], likeliest[rows] = block.amax(1), probabilities.amax(1)
        if buffer is not None:
            buffer[rows] = probabilities
    # The likeliest tag's probability is never too small for a float, unlike the others': log Σ exp through it.
    return scores - highest[image] + likeliest.log()[image]


def over_images(
    log_probabilities: Float[Tensor, " t"], image: Int[Tensor, " t"], counts: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Minus the mean of each image's values, 0 for an image without any."""
    sums = log_probabilities.new_zeros(len(counts)).index_add_(0, image, log_probabilities)
    return -sums / counts.clamp(min=1)


def blocks(logits: Float[Tensor, "b c"]) -> Iterator[slice]:
    """Rows at a time, so few that a float32 copy stays in a core's cache; on a GPU, so many that it is busy."""
    size = 2**20 if logits.is_cpu else 2**26
    rows = max(1, size // (4 * max(1, logits.shape[1])))
    return (slice(start, start + rows) for start in range(0, len(logits), rows))


def check_tags(logits: Float[Tensor, "b c"], tags: Int[Tensor, " t"], offsets: Int[Tensor, " b+1"]) -> None:
    """Refuses flat tags that do not belong to the logits."""
    words = logits.shape[1]
    if tags.is_cuda:
        torch._assert_async(((tags >= 0) & (tags < words)).all(), "a tag id is not in 0..classes - 1")
        return
    if offsets[0] != 0 or offsets[-1] != len(tags) or (offsets.diff() < 0).any():
        raise ValueError(f"offsets must rise from 0 to the number of tags, {len(tags)}: {offsets.tolist()[:9]} …")
    wrong = tags[(tags < 0) | (tags >= words)]
    if len(wrong):
        meaning = " (-1 is a tag outside the vocabulary)" if wrong[0] == -1 else ""
        raise ValueError(f"tag id {wrong[0].item()}{meaning} cannot be learned: ids are 0..{words - 1}.")
