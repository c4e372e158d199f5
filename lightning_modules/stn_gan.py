"""A generator that learns, for each picture, the affine change that is of most use to a classifier."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.base import Answer, Batch, Technique, likeliest
from lightning_modules.nn.collapse import Columns, contest, game_scores, movement, movement_scores, opinions, sentence
from lightning_modules.nn.gan import Objective, adversarial_loss, discriminator_loss
from lightning_modules.nn.keyed import uniform
from lightning_modules.nn.pixels import as_float
from lightning_modules.nn.spatial import SpatialTransformer, identity_distance
from lightning_modules.nn.tasks import one_task
from lightning_modules.optimisers import Optimiser


class Made(NamedTuple):
    """A batch of pictures in 0..1, what the generator made of them, and from which numbers."""

    image: Tensor
    changed: Tensor
    theta: Tensor
    draws: Tensor


class STNGAN(Technique):
    """An augmentation that is learned: a spatial transformer against a frozen classifier and a discriminator.

    Pictures of which a classifier is unsure teach it most (active learning), so the generator is rewarded for the
    classifier's entropy; and it is punished for pictures that a discriminator tells from untouched ones, so that they
    stay believable. It only ever moves pixels, by an affine map: what was done to a picture can be read off.

    min_G max_D  E[log D(I) + log(1 − D(G(I))) + λ L_ME(G(I))]

    The game has an easy way out, which the source reports: the generator learns the identity. So every epoch measures
    how far its pictures are from their originals (`nn/collapse.py`), and `Objective` has ways to keep it from there. A
    batch is D's step, then G's on the same pictures; `global_step` counts G's.

    Reference: Cho, Kim and Yoon, Automatic Data Augmentation from the Perspective of Active Learning for Image
    Classification (in Korean), KAIST. Batch size, augmentation and networks but the classifier's are not given there.

    Args:
        encoder: (B, 3, H, W) images to (B, D) features, of the classifier; taken over and frozen by callbacks.
        classes: {task: names of its classes}; null in YAML, filled in from the data.
        task: which of them the classifier knows; null is the first.
        generator: pictures to changed pictures and θ.
        discriminator: pictures to logits; None for no adversary.
        objective: what the generator minimises.
        gradient_clip: largest norm of either network's gradient; None clips nothing.
        seed: of the noise, which is a function of it, of the epoch and of the picture's place in its split.
        optimiser: of the generator.
        discriminator_optimiser: of the discriminator.

    Attributes:
        head: the classifier's linear layer.
        classes: the one task with its classes.
        metrics: {split: {"columns": Columns}}.
        scores: {split: what the last evaluation came to}, without the split's name in the keys.

    Raises:
        ValueError: no such task, a number out of range, or diversity without noise.
    """

    strategy: ClassVar[str] = "ddp_find_unused_parameters_true"  # each backward reaches one of the two networks

    def __init__(
        self,
        encoder: nn.Module,
        classes: Mapping[str, Sequence[str]] | None,
        task: str | None,
        generator: SpatialTransformer,
        discriminator: nn.Module | None,
        objective: Objective,
        gradient_clip: float | None,
        seed: int,
        optimiser: Optimiser,
        discriminator_optimiser: Optimiser,
    ) -> None:
        super().__init__(optimiser)
        if gradient_clip is not None and gradient_clip <= 0:
            raise ValueError(f"gradient_clip={gradient_clip} must be above 0, or null for none.")
        if objective.diversity and not generator.slots:
            raise ValueError(f"objective.diversity={objective.diversity} is about noise: set generator.noise above 0.")
        self.task, names = one_task(classes, task)
        self.classes = {self.task: names}
        self.encoder = encoder
        self.head = nn.Linear(int(encoder.features), len(names))  # type: ignore[arg-type]
        self.generator, self.discriminator = generator, discriminator
        self.objective, self.gradient_clip, self.seed = objective, gradient_clip, seed
        self.discriminator_optimiser = discriminator_optimiser
        self.metrics = nn.ModuleDict({split: nn.ModuleDict({"columns": Columns()}) for split in ("val", "test")})
        self.scores: dict[str, dict[str, float]] = {}

    def setup(self, stage: str) -> None:
        """Looks at what others decide: the classifier must be frozen, and the Trainer must not want to optimise.

        Raises:
            ValueError: it is not, or does.
        """
        if stage != "fit":
            return
        if any(parameter.requires_grad for part in (self.encoder, self.head) for parameter in part.parameters()):
            raise ValueError("the classifier must not learn here: set callbacks.freeze.modules=[encoder, head].")
        self.check_trainer(
            {key: getattr(self.trainer, key) for key in ("gradient_clip_val", "accumulate_grad_batches")}
        )
        # Not before: Lightning would refuse the same settings first, in words about its own modes.
        self.automatic_optimization = False

    @classmethod
    def check_trainer(cls, trainer: Mapping[str, Any]) -> None:
        clip, accumulate = trainer["gradient_clip_val"], trainer["accumulate_grad_batches"]
        if clip:
            raise ValueError(f"trainer.gradient_clip_val={clip} would clip neither network: use module.gradient_clip.")
        if accumulate != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches={accumulate} would do nothing: take a larger batch_size."
            )

    def forward(self, image: Tensor) -> Tensor:
        """The classifier's logits (B, classes) of (B, 3, H, W) images, uint8 or in 0..1."""
        return self.head(self.encoder(image))

    def make(self, batch: Batch, epoch: int) -> Made:
        """What the generator makes of a batch's pictures.

        Raises:
            ValueError: the batch brings features that were computed once: there is no picture to change.
        """
        if "image" not in batch:
            raise ValueError("the generator changes pictures, which kept features do not show: set features=off.")
        image, slots = as_float(batch["image"]), self.generator.slots
        draws = uniform(self.seed, epoch, batch["index"], 2 * slots)
        changed, theta = self.generator(image, draws[:, :slots])
        return Made(image, changed, theta, draws)

    def step(self, batch: Batch, split: str) -> dict[str, Any]:
        """The generator's loss on a batch and its terms, without learning; in evaluation all that is measured, too."""
        train = split == "train"
        made, truth = self.make(batch, self.current_epoch if train else 0), batch["labels"][self.task]
        after = self(made.changed)
        before = None if train and self.objective.budget is None else self(made.image)
        judged = None if self.discriminator is None else self.discriminator(made.changed)
        terms = self.terms(made, truth, after, before, judged)
        losses = torch.stack(list(terms.values())).sum(0)
        if before is not None and not train:
            columns = {"loss": losses, **opinions(before, after, truth), **movement(made.theta)}
            if judged is not None and self.discriminator is not None:
                columns |= {"adversarial": terms["adversarial"], **contest(self.discriminator(made.image), judged)}
            self.metrics[split]["columns"].add(columns, truth, batch["index"])
        means = {name: term.detach().mean() for name, term in terms.items()}
        # Where θ is no number a GPU's sampler reads black, which no loss minds: this scalar shows it, and is refused.
        means["identity_distance"] = identity_distance(made.theta.detach()).mean()
        return {"loss": losses.mean(), **means, "index": batch["index"]}

    def terms(
        self, made: Made, truth: Tensor, after: Tensor, before: Tensor | None, judged: Tensor | None
    ) -> dict[str, Tensor]:
        """The parts of the generator's loss, for each picture."""
        terms = {} if judged is None else {"adversarial": adversarial_loss(judged, self.objective.game)}
        terms["max_entropy"] = self.objective.doubt(after, before, truth)
        if not self.objective.diversity:
            return terms | self.objective.remedies(made.theta)
        noise, another = made.draws.chunk(2, 1)
        return terms | self.objective.remedies(made.theta, self.generator.locate(made.image, another), (noise, another))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The discriminator's step, then the generator's against what it has become."""
        generator, *discriminator = each(self.optimizers())
        found = {}
        for optimizer in discriminator:
            with optimizer.toggle_model():
                found["discriminator_loss"] = self.descend(optimizer, self.telling_apart(batch))
                # What `optimizer.step()` does, precision and clipping included, but for one thing: Lightning counts it,
                # and `global_step` is to be the number of batches.
                self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
        with generator.toggle_model():
            found |= self.step(batch, "train")
            self.descend(generator, found["loss"])
            generator.step()
        for schedule in each(self.lr_schedulers()):
            schedule.step()
        return found | {"loss": found["loss"].detach()}

    def telling_apart(self, batch: Batch) -> Tensor:
        """The discriminator's loss on a batch; the generator's part costs too little to be shared with its own step."""
        assert self.discriminator is not None
        with torch.no_grad():
            made = self.make(batch, self.current_epoch)
        real, changed = self.discriminator(torch.cat([made.image, made.changed])).chunk(2)
        return discriminator_loss(real, changed).mean()

    def descend(self, optimizer: LightningOptimizer, loss: Tensor) -> Tensor:
        """Gradients of a loss, for an optimiser that is about to step; the loss, detached."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        return loss.detach()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Here and not before the step: a gradient scaler (16-mixed) has been divided out by now. By torch itself, since
        # Lightning's own clipping refuses every fused optimiser in mixed precision, though bfloat16 has no scaler.
        if self.gradient_clip is not None:
            members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(members, self.gradient_clip)

    def configure_optimizers(self) -> Any:
        parts: list[tuple[nn.Module, Optimiser]] = [(self.generator, self.optimiser)]
        if self.discriminator is not None:
            parts.append((self.discriminator, self.discriminator_optimiser))
        optimizers = [settings.build(part.named_parameters(), self.may_fuse) for part, settings in parts]
        if all(settings.steady for _, settings in parts):
            return optimizers
        counts = self.count_steps()
        factors = [lambda step, settings=settings: settings.factor(step, *counts) for _, settings in parts]
        return optimizers, [LambdaLR(optimizer, factor) for optimizer, factor in zip(optimizers, factors, strict=True)]

    def count_steps(self) -> tuple[int, int]:
        """Batches in an epoch and in the whole fit: each has one step of either network."""
        if math.isinf(steps := self.trainer.estimated_stepping_batches):
            raise ValueError("a schedule that is not constant needs trainer.max_epochs or max_steps.")
        return int(self.trainer.num_training_batches), int(steps)

    def results(self, split: str) -> dict[str, float]:
        """`val/loss`, the classifier's doubt before and after, the game, and how much is changed (`val/collapsed`)."""
        columns = self.metrics[split]["columns"].read()
        means = ("loss", "entropy_before", "entropy_after", "top1_before", "top1_after")
        scores = {name: columns[name].nanmean().item() for name in means}
        scores |= (game_scores(columns) if self.discriminator is not None else {}) | movement_scores(columns)
        self.scores[split] = scores
        return {f"{split}/{name}": value for name, value in scores.items()}

    def verdict(self, split: str) -> str:
        """The last results of a split in words: whether the generator collapsed, and by which measure."""
        return sentence(self.scores[split])

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The classifier's `logits` by task, and `index`; needs no labels."""
        return {"logits": {self.task: self(batch["image"]).float()}, "index": batch["index"]}

    @torch.no_grad()
    def answers(self, batch: Batch, top_k: int) -> list[Answer]:
        """The classifier's: for each image the `top_k` likeliest (class, probability) pairs, best first."""
        rows = likeliest(self(batch["image"]).float().softmax(1), self.classes[self.task], top_k)
        return [{self.task: row} for row in rows]


def each(found: Any) -> list[Any]:
    """What Lightning gives as None, as one thing, or as a list, as a list."""
    return found if isinstance(found, list) else [found] if found is not None else []
