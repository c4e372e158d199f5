"""The layers between an encoder and a contrastive loss, thrown away afterwards."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def projector(features: int, widths: Sequence[int], batch_norm: bool) -> nn.Sequential:
    """An MLP with ReLU between its layers: a loss that wants views told alike spoils what it sits on.

    Reference: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, section 4.2:
    features before a projector of two layers serve better than those after it, by more than ten points.

    Args:
        features: that come in.
        widths: of the layers, the last of which is that of the projection; [] hands the features through.
        batch_norm: normalise before each ReLU.

    Raises:
        ValueError: a width below 1.
    """
    if any(width < 1 for width in widths):
        raise ValueError(f"projector={list(widths)}: a layer needs a width of 1 or more.")
    layers: list[nn.Module] = []
    for before, after in pairwise([features, *widths]):
        if layers:
            layers += [nn.BatchNorm1d(before)] if batch_norm else []
            layers += [nn.ReLU()]
        layers += [nn.Linear(before, after)]
    return nn.Sequential(*layers)
