"""A generator's opponent, and what the two play for: the adversarial game, and a classifier that is to be made unsure.

The source of `STNGAN` prints its formulas with misprints. What is computed here instead:

* L_ME = −log(log₂ m − H) falls when H falls: to minimise it makes the classifier surer, the opposite of what the text
  wants. `log` turns its sign; `plain` is log₂ m − H; `printed` is as printed, to see what that does.
* log(log₂ m − H) runs to −∞ where H reaches log₂ m; an ε is added inside.
* The generator's gradient lacks the λ of its objective, and the discriminator's has log D(I′) where log D(I) is meant.
  Here λ and D(I) are there.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.nn.losses import MISSING
from lightning_modules.nn.spatial import identity_distance

EPSILON = 1e-3  # bits; bounds the slope of the logarithm: about 16 where it is steepest
FORMS = ("plain", "log", "printed")
GAMES = ("minimax", "nonsaturating")


class Discriminator(nn.Module):
    """Says of pictures whether they are as they were taken (positive) or changed (negative): one logit each.

    Strided convolutions, then one linear layer. Without normalisation: a picture's logit depends neither on the others
    of its batch nor on the number of processes.

    Reference: after Radford et al., Unsupervised Representation Learning with DCGANs, 2016; the source does not
    describe its own.

    Args:
        width: channels of the first convolution, which the next two double.

    Raises:
        ValueError: a width below 1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"discriminator.width={width} must be 1 or more.")
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(width, 2 * width, 4, 2, 1), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(2 * width, 4 * width, 4, 2, 1), nn.LeakyReLU(0.2)),
            *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(4 * width * 16, 1)),
        )

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """Logits of pictures in 0..1."""
        return self.layers(2 * image - 1).float().squeeze(1)


def discriminator_loss(real: Float[Tensor, " b"], changed: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """−log D(I) − log(1 − D(I′)) of each picture, from the logits of D.

    Reference: Goodfellow et al., Generative Adversarial Nets, 2014.
    """
    return F.softplus(-real) + F.softplus(changed)


def adversarial_loss(changed: Float[Tensor, " b"], game: str = "minimax") -> Float[Tensor, " b"]:
    """What the generator loses to the discriminator on each picture, from the logits of D.

    log(1 − D(I′)) in the `minimax` game, which the source prints; −log D(I′) in the `nonsaturating` one, which still
    has a gradient where the discriminator is sure.

    Reference: Goodfellow et al., Generative Adversarial Nets, 2014, section 3.
    """
    return -F.softplus(changed) if game == "minimax" else F.softplus(-changed)


def entropy(logits: Float[Tensor, "b m"]) -> Float[Tensor, " b"]:
    """H = −Σ p log₂ p of each row's softmax, in bits, from 0 to log₂ m."""
    log_probabilities = logits.float().log_softmax(1)
    return -(log_probabilities.exp() * log_probabilities).sum(1) / math.log(2)


def max_entropy_loss(logits: Float[Tensor, "b m"], form: str = "plain") -> Float[Tensor, " b"]:
    """A loss whose descent raises the classifier's entropy on each picture, unless it is `printed`.

    With the distance d = log₂ m − H: d (`plain`), log(d + ε) (`log`), −log(d + ε) (`printed`: it lowers the entropy).
    """
    missing = math.log2(logits.shape[1]) - entropy(logits)
    if form == "plain":
        return missing
    logarithm = (missing.clamp(min=0) + EPSILON).log()  # rounding can leave a little less than nothing
    return logarithm if form == "log" else -logarithm


@dataclass(frozen=True)
class Objective:
    """What the generator minimises: the game against the discriminator, the classifier's doubt, and remedies.

    loss = adversarial + λ · L_ME, as in the source; and instead or besides, ways out of the collapse to the identity:

    * `budget`: |H(I′) − min(H(I) + budget, log₂ m)| in the place of L_ME. Every picture is to become that much harder,
      and no harder.
    * `distance`: weight · (d − distance)² with d = mean |θ − I|. Every picture is to be changed that much.
    * `guard`: a picture whose true class has become less likely than that is dropped from L_ME: nothing is gained by
      making pictures harder that cannot be recognised any more.
    * `diversity`: weight / (|θ₁ − θ₂| / |z₁ − z₂| + ε) for two noises of the same picture, which is large where the
      noise changes nothing. Reference: Mao et al., Mode Seeking Generative Adversarial Networks, 2019.

    Args:
        entropy_weight: λ.
        entropy_form: of L_ME, `plain`, `log` or `printed`.
        game: `minimax` or `nonsaturating`; unused without a discriminator.
        budget: bits; None for L_ME.
        distance: None for no target.
        distance_weight: of the target.
        guard: a probability; None drops none.
        diversity: weight; 0 is off.

    Raises:
        ValueError: a value outside its range.
    """

    entropy_weight: float
    entropy_form: str
    game: str
    budget: float | None
    distance: float | None
    distance_weight: float
    guard: float | None
    diversity: float

    def __post_init__(self) -> None:
        for key, accepted in (("entropy_form", FORMS), ("game", GAMES)):
            if getattr(self, key) not in accepted:
                raise ValueError(f"objective.{key}={getattr(self, key)!r} is not one of: {', '.join(accepted)}.")
        for key in ("entropy_weight", "budget", "distance", "distance_weight", "diversity"):
            if (getattr(self, key) or 0) < 0:
                raise ValueError(f"objective.{key}={getattr(self, key)} must not be negative.")
        if not 0 <= (self.guard or 0) < 1:
            raise ValueError(f"objective.guard={self.guard} must be a probability from 0 and below 1.")

    def doubt(
        self, after: Float[Tensor, "b m"], before: Float[Tensor, "b m"] | None, truth: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """λ times what the classifier's answers cost, for each picture.

        Args:
            after: the classifier's logits of the changed pictures.
            before: those of the pictures as they were; needed for a budget alone.
            truth: the true classes, −1 where one is missing.
        """
        if self.budget is None or before is None:
            costs = max_entropy_loss(after, self.entropy_form)
        else:
            wanted = (entropy(before) + self.budget).clamp(max=math.log2(after.shape[1]))
            costs = (entropy(after) - wanted).abs()
        if self.guard is not None:
            costs = costs * (true_probability(after, truth) >= self.guard)
        return self.entropy_weight * costs

    def remedies(
        self,
        theta: Float[Tensor, "b 2 3"],
        other: Float[Tensor, "b 2 3"] | None = None,
        noises: tuple[Float[Tensor, "b z"], Float[Tensor, "b z"]] | None = None,
    ) -> dict[str, Float[Tensor, " b"]]:
        """What the parameters themselves cost, for each picture.

        Args:
            theta: of the changed pictures.
            other: of the same pictures with another noise.
            noises: the two.
        """
        found = {}
        if self.distance is not None:
            found["target"] = self.distance_weight * (identity_distance(theta) - self.distance) ** 2
        if self.diversity and other is not None and noises is not None:
            apart = (theta - other).abs().mean((1, 2)) / (noises[0] - noises[1]).abs().mean(1).clamp(min=EPSILON)
            found["diversity"] = self.diversity / (apart + EPSILON)
        return found


@torch.no_grad()
def true_probability(logits: Float[Tensor, "b m"], truth: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """How likely the classifier takes each picture's true class to be; 1 where nobody knows it."""
    found = logits.float().softmax(1).gather(1, truth.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(truth == MISSING, 1.0, found)
