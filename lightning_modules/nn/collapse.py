"""Whether a generator of changed pictures still changes them: what is counted for each picture, and what it comes to.

The generator of `STNGAN`'s source ended in the identity, and was found out by its pictures. Here every epoch says it in
numbers.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_modules.nn.gan import discriminator_loss, entropy
from lightning_modules.nn.losses import MISSING
from lightning_modules.nn.retrieval import Embeddings
from lightning_modules.nn.spatial import displacement, identity_distance

UNCHANGED = 1 / 64  # of the side: half a pixel of CIFAR's 32
BARELY = 1 / 16  # of the side: two pixels of 32, half of what the usual random crop shifts by
COLLAPSED = 0.9  # share of unchanged pictures
ALIKE = 0.01  # spread of θ below which all pictures get one and the same change
SQUEEZED = 0.01  # |det A| below which a picture is squeezed to a line
WON = 0.99  # accuracy of the discriminator


class Columns(Embeddings):
    """Named numbers of every picture, from all processes, in the order of the split.

    Means and spreads of them are then sums in one order, which do not depend on who saw which picture.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: tuple[str, ...] = ()

    def add(self, columns: Mapping[str, Tensor], truth: Int[Tensor, " b"], index: Int[Tensor, " b"]) -> None:
        """Adds a batch: for each name one number a picture (B,), the true classes, and the pictures' places."""
        self.names = tuple(columns)
        self.update(torch.stack([column.float() for column in columns.values()], 1), truth, index)

    def read(self) -> dict[str, Float[Tensor, " n"]]:
        """{name: (N,) float64 on the CPU}. Every rank must call it."""
        rows = self.rows()
        columns = rows.embeddings.reshape(len(rows.places), -1).double().cpu()
        return dict(zip(self.names, columns.unbind(1), strict=True))


def movement(theta: Float[Tensor, "b 2 3"]) -> dict[str, Float[Tensor, " b"]]:
    """The columns of `Columns` that θ gives: its six numbers, and how far it is from changing nothing."""
    six = {f"theta{i}": column for i, column in enumerate(theta.flatten(1).unbind(1))}
    return six | {"identity_distance": identity_distance(theta), "displacement": displacement(theta)}


def opinions(
    before: Float[Tensor, "b m"], after: Float[Tensor, "b m"], truth: Int[Tensor, " b"]
) -> dict[str, Float[Tensor, " b"]]:
    """The columns that a classifier gives: its entropy in bits and whether it is right (NaN where nobody knows).

    Args:
        before: its logits of the pictures as they were.
        after: its logits of the changed ones.
        truth: the true classes, −1 where one is missing.
    """
    found = {}
    for name, logits in (("before", before), ("after", after)):
        found[f"entropy_{name}"] = entropy(logits)
        found[f"top1_{name}"] = torch.where(truth == MISSING, torch.nan, (logits.argmax(1) == truth).float())
    return found


def contest(real: Float[Tensor, " b"], changed: Float[Tensor, " b"]) -> dict[str, Float[Tensor, " b"]]:
    """The columns that a discriminator gives, from its logits of the pictures as they were and of the changed ones."""
    return {"discriminator_loss": discriminator_loss(real, changed), "real": real, "changed": changed}


def movement_scores(rows: Mapping[str, Tensor]) -> dict[str, float]:
    """What the rows of a split say about the changes of its pictures.

    Returns:
        identity_distance: mean |θ − I|. identity_spread: standard deviation over the pictures of each number of θ, mean
        over the six. displacement: mean over the pictures of how far the place moves that moves most, as a share of the
        side. unchanged: share of the pictures where that is below 1/64. squeezed: share of those squeezed to a line.
        collapsed: 1 if nine of ten pictures are unchanged, or the mean displacement is below 1/16. alike: 1 if the
        spread is below 0.01, so that all pictures get one and the same change, whatever it is.

    Raises:
        ValueError: θ of some picture is no number.
    """
    theta = torch.stack([rows[f"theta{i}"] for i in range(6)], 1)
    broken = (~theta.isfinite().all(1)).sum().item()
    if broken:
        raise ValueError(
            f"the generator's θ is not a number for {broken} of {len(theta)} pictures: its training went astray; a "
            "smaller lr, gradient_clip=1 or bounded parameters (generator.ranges) may help."
        )
    moved = rows["displacement"]
    determinant = theta[:, 0] * theta[:, 4] - theta[:, 1] * theta[:, 3]
    scores = {
        "identity_distance": rows["identity_distance"].mean().item(),
        "identity_spread": theta.std(0, correction=0).mean().item(),
        "displacement": moved.mean().item(),
        "unchanged": (moved < UNCHANGED).double().mean().item(),
        "squeezed": (determinant.abs() < SQUEEZED).double().mean().item(),
    }
    scores["collapsed"] = float(scores["unchanged"] >= COLLAPSED or scores["displacement"] < BARELY)
    scores["alike"] = float(scores["identity_spread"] < ALIKE)
    return scores


def game_scores(rows: Mapping[str, Tensor]) -> dict[str, float]:
    """How the discriminator does: its loss, the generator's, its accuracy, and whether it has won outright (1)."""
    accuracy = ((rows["real"] > 0).double().mean() + (rows["changed"] < 0).double().mean()).item() / 2
    losses = {name: rows[name].mean().item() for name in ("adversarial", "discriminator_loss")}
    return losses | {"discriminator_accuracy": accuracy, "discriminator_won": float(accuracy >= WON)}


def sentence(scores: Mapping[str, float]) -> str:
    """The scores of a split in words: collapsed or not, by which measure, and what else went wrong."""
    verdict = "Collapsed to the identity" if scores["collapsed"] else "Not collapsed"
    said = (
        f"{verdict}: {scores['unchanged']:.1%} of the pictures are unchanged ({COLLAPSED:.0%} or more is a collapse), "
        f"and the place that moves most moves by {scores['displacement']:.1%} of the side on average (less than "
        f"{BARELY:.2%} is one)."
    )
    if scores["alike"] and not scores["collapsed"]:
        said += f" But all pictures get nearly the same change (spread of θ {scores['identity_spread']:.4f})."
    if scores["squeezed"]:
        said += f" {scores['squeezed']:.1%} of them are squeezed to a line."
    if scores.get("discriminator_won"):
        said += (
            f" The discriminator has won outright: it is right about {scores['discriminator_accuracy']:.1%} of the "
            "pictures, and there is little left to learn from it."
        )
    return said
