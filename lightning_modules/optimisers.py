"""Optimiser and learning-rate schedule as plain settings."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_modules.nn.lars import LARS

Name = Literal["sgd", "adam", "adamw", "lars"]
Schedule = Literal["constant", "cosine", "step"]


@dataclass(frozen=True)
class Optimiser:
    """An optimiser and its learning rate over time.

    Weight decay is kept off biases and normalisation (every parameter of one dimension): decaying them helps nothing
    and hurts small data sets. Only parameters that want a gradient are taken, so a frozen trunk costs no optimiser
    state.

    lr(step) = lr · scale(group) · min(1, step / warm-up) · schedule(step), where the schedule is 1 (`constant`), half a
    cosine down to 0 at the last step (`cosine`), or decay^⌊epoch / decay_epochs⌋ (`step`; decay_epochs=1 is "lr × decay
    each epoch").

    Reference: no decay of biases and normalisation, He et al., Bag of Tricks, 2019, section 3.1; cosine, Loshchilov and
    Hutter, SGDR, 2017.

    Args:
        name: `sgd` (Nesterov momentum), `adam`, `adamw`, or `lars` (sgd for large batches).
        lr: the peak learning rate.
        weight_decay: per step; for adamw decoupled from the gradient.
        encoder_lr_scale: factor on the learning rate of the `encoder`, for careful fine-tuning; 1 treats all alike.
        schedule: `constant`, `cosine` or `step`.
        warmup_epochs: epochs (also fractions) of linear rise from 0.
        decay: factor of each drop, for `step`.
        decay_epochs: epochs between two drops, for `step`.
        momentum: of sgd and lars.

    Raises:
        ValueError: a value outside its range.
    """

    name: Name
    lr: float
    weight_decay: float
    encoder_lr_scale: float
    schedule: Schedule
    warmup_epochs: float
    decay: float
    decay_epochs: int
    momentum: float

    def __post_init__(self) -> None:
        for key, accepted in (("name", get_args(Name)), ("schedule", get_args(Schedule))):
            if getattr(self, key) not in accepted:
                raise ValueError(f"optimiser.{key}={getattr(self, key)!r} is not one of: {', '.join(accepted)}.")
        for key, valid in (("lr", self.lr > 0), ("encoder_lr_scale", self.encoder_lr_scale > 0)):
            if not valid:
                raise ValueError(f"optimiser.{key}={getattr(self, key)} must be above 0.")
        for key in ("weight_decay", "warmup_epochs", "momentum"):
            if getattr(self, key) < 0:
                raise ValueError(f"optimiser.{key}={getattr(self, key)} must not be negative.")
        if self.decay_epochs < 1 or not 0 < self.decay <= 1:
            raise ValueError(f"optimiser.decay={self.decay} must lie in 0..1, decay_epochs={self.decay_epochs} from 1.")

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]], fused: bool = True) -> Optimizer:
        """The torch optimiser over those parameters that want a gradient.

        Args:
            parameters: (name, parameter) pairs; names that begin with `encoder.` get the encoder's learning rate.
            fused: one kernel for the whole update, where there is one.
        """
        groups = self.groups(parameters)
        if self.name == "lars":
            return LARS(groups, self.lr, self.momentum)
        if self.name == "sgd":
            return torch.optim.SGD(groups, self.lr, momentum=self.momentum, nesterov=self.momentum > 0, fused=fused)
        kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return kind(groups, self.lr, fused=fused)

    def groups(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, object]]:
        """Parameter groups by (encoder or not, decayed or not), without empty ones."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in parameters:
            if parameter.requires_grad:
                groups.setdefault((name.startswith("encoder."), parameter.ndim > 1), []).append(parameter)
        return [
            {
                "params": members,
                "lr": self.lr * (self.encoder_lr_scale if encoder else 1.0),
                "weight_decay": self.weight_decay if decayed else 0.0,
            }
            for (encoder, decayed), members in groups.items()
        ]

    @property
    def steady(self) -> bool:
        """Whether the learning rate never changes, so that no scheduler is needed."""
        return self.schedule == "constant" and self.warmup_epochs == 0

    def factor(self, step: int, epoch_steps: int, steps: int) -> float:
        """What the learning rate is multiplied by.

        Args:
            step: optimiser steps taken so far.
            epoch_steps: optimiser steps in an epoch.
            steps: optimiser steps in the whole fit.
        """
        warmup = round(self.warmup_epochs * epoch_steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
        if self.schedule == "step":
            return self.decay ** (step // epoch_steps // self.decay_epochs)
        return 1.0
