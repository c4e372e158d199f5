"""Unsupervised data augmentation: what a network says of a photo it should say of a changed copy too."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_modules.nn.keyed import uniform

Annealing = Literal["none", "linear", "log", "exp"]
Logits = dict[str, Tensor]
STEEPNESS = 5.0  # of the log and exp schedules, as published
WANTED = {
    "weight": "at least 0",
    "confidence": "at least 0 and below 1",
    "temperature": "above 0",
    "annealing": f"one of: {', '.join(get_args(Annealing))}",
}


class Agreement(NamedTuple):
    """One task's consistency on the unlabelled photos of a batch.

    Attributes:
        losses: of each photo, 0 where the network is not sure enough.
        confident: which are counted.
    """

    losses: Float[Tensor, " u"]
    confident: Bool[Tensor, " u"]


class UDA(nn.Module):
    """Consistency training on unlabelled photos, beside the supervised loss of any classifier.

    The network's answer to a photo as it is becomes the target for a strongly changed copy. The target is detached,
    else the network could agree with itself by making the clear answer vague; it is sharpened, and a photo without a
    clear answer is left out. Labelled samples that are learned already are left out too (training-signal annealing), so
    that few labels are not learned by heart while many unlabelled photos are still being agreed on.

    L = mean over i of [max_k p(k|x_i) > β] · H(softmax(z(x_i) / T), p(·|x̂_i))        left out: p(y|x) > η(t)

    The labelled and the changed photos go through the network together, so that batch normalisation sees both; the
    clean ones go before them, without gradients. H differs from the paper's KL divergence by the target's entropy,
    which has no gradient.

    Reference: Xie et al., Unsupervised Data Augmentation for Consistency Training, 2020. The plain form, which an entry
    to the ETRI fashion challenge of 2022 used, is confidence 0, temperature 1, annealing none.

    Args:
        strong: changes photos; has `slots`, the random numbers that it wants for a photo, and takes photos and these.
        weight: of L beside the supervised loss.
        confidence: β.
        temperature: T; below 1 sharpens.
        annealing: η rises from 1 / classes to 1 over the fit: `linear`, `log` (early), `exp` (late), or `none` (1).
        seed: of the random numbers, which are a function of it, of the epoch and of the photo's turn in it.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self, strong: nn.Module, weight: float, confidence: float, temperature: float, annealing: str, seed: int
    ) -> None:
        super().__init__()
        for key, value, valid in (
            ("weight", weight, weight >= 0),
            ("confidence", confidence, 0 <= confidence < 1),
            ("temperature", temperature, temperature > 0),
            ("annealing", annealing, annealing in get_args(Annealing)),
        ):
            if not valid:
                raise ValueError(f"uda.{key}={value!r} must be {WANTED[key]}.")
        self.strong, self.weight, self.seed = strong, weight, seed
        self.confidence, self.temperature, self.annealing = confidence, temperature, annealing

    def forward(
        self, score: Callable[[Mapping[str, Any]], Logits], image: Tensor, unlabelled: Mapping[str, Tensor], epoch: int
    ) -> tuple[Logits, dict[str, Agreement]]:
        """Logits of the labelled photos, and the agreement of each task on the unlabelled ones.

        Args:
            score: {task: logits} of a batch of images.
            image: labelled photos (B, 3, H, W), uint8 or in 0..1.
            unlabelled: `image` (U, 3, H, W), and `position` (U,), the photo's turn in the epoch.
            epoch: from 0.
        """
        photos = unlabelled["image"]
        if len(photos) == 0:  # the share of this process: the others may have some
            logits = score({"image": image})
            return logits, {task: self.agreement(z[:0], z[:0]) for task, z in logits.items()}
        with torch.no_grad():
            targets = score({"image": photos})
            draws = uniform(self.seed, epoch, unlabelled["position"], int(self.strong.slots))  # type: ignore[arg-type]
            changed = self.strong(photos, draws)
        both = score({"image": torch.cat([floating(image), floating(changed)])})
        size = len(image)
        agreements = {task: self.agreement(targets[task], z[size:]) for task, z in both.items()}
        return {task: z[:size] for task, z in both.items()}, agreements

    def agreement(self, clean: Float[Tensor, "u c"], changed: Float[Tensor, "u c"]) -> Agreement:
        """How far the answers to changed photos are from those to the clean ones, which get no gradient."""
        clean = clean.detach().float()
        target = (clean / self.temperature).softmax(1)
        confident = clean.softmax(1).amax(1) > self.confidence
        losses = -(target * changed.float().log_softmax(1)).sum(1)
        return Agreement(torch.where(confident, losses, 0.0), confident)

    def ceiling(self, progress: float, classes: int) -> float:
        """η: the probability of its class above which a labelled sample is left out.

        Args:
            progress: share of the fit that is over.
            classes: of the task.
        """
        rise = {
            "none": 1.0,
            "linear": progress,
            "log": 1 - math.exp(-STEEPNESS * progress),
            "exp": math.exp(STEEPNESS * (progress - 1)),
        }[self.annealing]
        return rise * (1 - 1 / classes) + 1 / classes

    def still_learned(
        self, logits: Float[Tensor, "b c"], labels: Int[Tensor, " b"], progress: float
    ) -> Bool[Tensor, " b"]:
        """Which labelled samples the supervised loss is taken of."""
        if self.annealing == "none":
            return torch.ones_like(labels, dtype=torch.bool)
        own = logits.detach().float().softmax(1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
        return own <= self.ceiling(progress, logits.shape[1])


def floating(image: Tensor) -> Tensor:
    """Pixels in 0..1."""
    return image if image.is_floating_point() else image.float() / 255
