"""LARS: the optimiser of large batches."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """Momentum SGD whose every layer takes steps in proportion to its own weights.

    A large batch wants a large learning rate, and the layer whose gradient is largest beside its weights is the first
    that it blows up. So each layer's step is scaled to a fixed share of the length of its weights, whatever the length
    of its gradient. Parameters of one dimension (biases and normalisation) take plain momentum steps.

    λ = η ‖w‖ / (‖g‖ + β ‖w‖),  v ← μ v + γ λ (g + β w),  w ← w − v;  λ = 1 where ‖w‖ or ‖g‖ is 0, and in one dimension

    Reference: You, Gitman and Ginsburg, Large Batch Training of Convolutional Networks, 2017, algorithm 1; biases and
    normalisation left out as in Chen et al., SimCLR, 2020.

    Args:
        groups: parameter groups, each with its own `lr` (γ) and `weight_decay` (β).
        lr: of groups that name none.
        momentum: μ.
        trust: η, the share of its weights' length that a layer moves at lr 1.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, momentum: float = 0.9, trust: float = 0.001
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; a parameter without a gradient stays."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            members: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
            if members:
                self.move(members, group)
        return loss

    def move(self, members: list[Tensor], group: dict[str, Any]) -> None:
        """Updates parameters of a group, all at once."""
        decay, momentum = group["weight_decay"], group["momentum"]
        gradients = [member.grad for member in members if member.grad is not None]
        ratios = self.ratios(members, gradients, decay, group["trust"])
        steps = torch._foreach_add(gradients, members, alpha=decay)
        torch._foreach_mul_(steps, [ratio * group["lr"] for ratio in ratios])
        for member, step in zip(members, steps, strict=True):
            state = self.state[member]
            velocity = state.get("momentum_buffer")
            state["momentum_buffer"] = step if velocity is None else velocity.mul_(momentum).add_(step)
        torch._foreach_sub_(members, [self.state[member]["momentum_buffer"] for member in members])

    def ratios(self, members: list[Tensor], gradients: list[Tensor], decay: float, trust: float) -> list[Tensor]:
        """λ of each parameter; nothing of it waits for the device."""
        lengths, slopes = torch._foreach_norm(members), torch._foreach_norm(gradients)
        found = []
        for member, length, slope in zip(members, lengths, slopes, strict=True):
            adapted = trust * length / (slope + decay * length)
            moves = (length > 0) & (slope > 0)
            found.append(torch.where(moves, adapted, 1.0) if member.ndim > 1 else torch.ones_like(length))
        return found
