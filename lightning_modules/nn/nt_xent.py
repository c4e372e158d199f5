"""SimCLR's loss, in blocks of pairs, each pair looked at once."""

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.nn.gather import check_equal, collect, rank, ranks

Precision = Literal["float32", "bfloat16"]
# exp(1 / T) and its inverse, times any number of keys, are in the range of float32, and of float64.
LOWEST_IN_FLOAT32, LOWEST = 1 / 40, 1 / 700


def nt_xent(
    first: Float[Tensor, "b d"],
    second: Float[Tensor, "b d"],
    temperature: float,
    precision: Precision = "float32",
    gathered: bool = False,
) -> Float[Tensor, ""]:
    """Normalised temperature-scaled cross entropy: each view has to find its partner among the views of all images.

    The mean over all 2n views of all processes, the same on each of them.

    loss_i = −log( exp(s_ip / T) / Σ_{j ≠ i} exp(s_ij / T) ),  s = cosine,  p = the other view of i's image

    Likeness is mutual, so each pair's exponential serves both. With e_ij = exp(s_ij / T) and r_i = Σ_{j ≠ i} e_ij

    ∂loss / ∂z_i = ( Σ_{j ≠ i} (e_ij / r_i + e_ij / r_j) z_j − 2 z_p ) / (2n T)

    which is computed along with the loss. A few blocks of the e_ij are kept and the others computed again, so memory
    grows with the batch and not with its square. What other processes' views want of one is in its own row too: they
    only have to tell their r_j, and no gradient is exchanged. It comes out as DDP, which averages, expects it.

    Reference: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, formula (1).

    Args:
        first: embeddings of one view of each image, of any length: they are normalised here.
        second: of the other view, in the same order.
        temperature: T; below 1/40 everything is computed in float64.
        precision: of the products and exponentials of views that are no partners; partners and sums are float32 always.
            With `bfloat16` the gradient is off by less than a hundredth of its length for T from 0.05 on.
        gathered: the embeddings are those of all processes already: nothing is exchanged.

    Raises:
        ValueError: a setting out of range, embeddings that do not belong together, fewer than two images in all, or
            processes with unequal batches.
    """
    check_settings(temperature, precision)
    if first.shape != second.shape:
        raise ValueError(f"the two views' embeddings differ in shape: {list(first.shape)} and {list(second.shape)}.")
    processes = 1 if gathered else ranks()
    if processes > 1:
        check_equal(first)
    if len(first) * processes < 2:
        raise ValueError("a batch of one image has no others to tell it from: NT-Xent needs a batch_size of 2 or more.")
    result = torch.promote_types(first.dtype, torch.float32)
    wide = result if temperature >= LOWEST_IN_FLOAT32 else torch.float64
    products = wide if wide == torch.float64 else getattr(torch, precision)
    with torch.autocast(first.device.type, enabled=False):
        views = torch.cat([F.normalize(each.to(wide), dim=1) for each in (first, second)])
        return NTXent.apply(views, temperature, products, processes > 1).to(result)


def check_settings(temperature: float, precision: str) -> None:
    """Refuses a temperature or a precision that `nt_xent` does not take."""
    if not LOWEST <= temperature < math.inf:
        raise ValueError(
            f"temperature={temperature} must be 1/700 or more, as similarities are divided by it; 0.1 to 0.5 is usual."
        )
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision!r} is not one of: {', '.join(get_args(Precision))}.")


class NTXent(torch.autograd.Function):
    """`nt_xent` of normalised views, the first ones above the second ones."""

    @staticmethod
    def forward(
        ctx: Any, views: Float[Tensor, "m d"], temperature: float, products: torch.dtype, shared: bool
    ) -> Float[Tensor, ""]:
        own, half, before = len(views), len(views) // 2, rank() * len(views) if shared else 0
        keys = collect(views).roll(-before, 0) if shared else views  # our own ones first
        partner = views.roll(half, 0)
        positive = (views * partner).sum(1) / temperature
        pairs = Negatives(views, keys, temperature, products, keep=ctx.needs_input_grad[0])
        negative = pairs.sums()
        terms = torch.stack([negative, positive], dim=1)
        negatives, positives = (collect(terms) if shared else terms).unbind(1)
        if ctx.needs_input_grad[0]:
            inverse = (negatives + positives.exp()).reciprocal().roll(-before, 0)
            # exp(s_ip / T) / r_i − 1, without the difference of two numbers that are nearly the same.
            missing = negative * inverse[:own]
            gradient = pairs.pull(inverse).addcmul_((missing + missing.roll(half, 0))[:, None], partner, value=-1)
            ctx.save_for_backward(gradient.div_(own * temperature))
        return F.softplus(negatives.log() - positives).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("nt_xent has no second derivative: it cannot be used with create_graph=True.")
        return ctx.saved_tensors[0] * gradient, None, None, None


class Negatives:
    """exp(s_ij / T) for each pair of an anchor and a key that is neither itself nor its partner, block by block.

    The first keys are the anchors: a block of two different lots of these is the transpose of another one, which is not
    computed.

    Args:
        anchors: this process's views.
        keys: all views, beginning with the anchors.
        temperature: T.
        products: the type of the products and of the exponentials; sums are of the anchors' own.
        keep: keep blocks for `pull`, as many as find room.
    """

    def __init__(
        self,
        anchors: Float[Tensor, "m d"],
        keys: Float[Tensor, "k d"],
        temperature: float,
        products: torch.dtype,
        keep: bool,
    ) -> None:
        self.anchors, self.keys = (anchors / temperature).to(products), keys.to(products)
        self.wide = anchors.dtype
        self.size, room = (512, 2**23) if anchors.is_cpu else (8192, 2**30)
        self.room = room if keep else 0
        self.kept: dict[tuple[int, int], Tensor] = {}

    def sums(self) -> Float[Tensor, " m"]:
        """Each anchor's sum."""
        sums = self.anchors.new_zeros(len(self.anchors), dtype=self.wide)
        for rows, columns, twice in self.blocks():
            block = self.block(rows, columns)
            sums[rows] += block.sum(1, dtype=self.wide)
            if twice:
                sums[columns] += block.sum(0, dtype=self.wide)
            if block.nbytes <= self.room:
                self.room -= block.nbytes
                self.kept[rows.start, columns.start] = block
        return sums

    def pull(self, inverse: Float[Tensor, " k"]) -> Float[Tensor, "m d"]:
        """Σ_j e_ij (1 / r_i + 1 / r_j) z_j for each anchor i, given all 1 / r."""
        total, inverse = torch.zeros_like(self.anchors, dtype=self.wide), inverse.to(self.anchors.dtype)
        for rows, columns, twice in self.blocks():
            block = self.kept.pop((rows.start, columns.start), None)
            block = self.block(rows, columns) if block is None else block
            block *= inverse[rows, None] + inverse[columns]
            total[rows] += block @ self.keys[columns]
            if twice:
                total[columns] += block.T @ self.keys[rows]
        return total

    def blocks(self) -> Iterator[tuple[slice, slice, bool]]:
        """Rows and columns of every block, and whether it stands for its transpose too."""
        own, every = len(self.anchors), len(self.keys)
        lots = [slice(start, min(start + self.size, own)) for start in range(0, own, self.size)]
        others = [slice(start, min(start + self.size, every)) for start in range(own, every, self.size)]
        for number, rows in enumerate(lots):
            yield from ((rows, columns, columns is not rows) for columns in lots[number:])
            yield from ((rows, columns, False) for columns in others)

    def block(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        """exp(s_ij / T); 0 where j is i itself or its partner."""
        block = (self.anchors[rows] @ self.keys[columns].T).exp_()
        half = len(self.anchors) // 2
        if columns.start < len(self.anchors):
            for partner in (0, half, -half):
                block.diagonal(rows.start + partner - columns.start).zero_()
        return block
