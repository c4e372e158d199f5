"""SimCLR's random views of a batch of images, every sample with parameters of its own."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from lightning_modules.nn import pixels

TRIES = 10


@dataclass(frozen=True)
class Plan:
    """What is done to each sample of a batch. A step that a sample does not take has values that change nothing.

    Attributes:
        box: top, left, height and width of the crop, in whole pixels.
        flip: mirrored left to right.
        blends: weights for `blend_`: of three changes before the hue, three after it, and the loss of colour.
        turn: of the hue, in revolutions.
        sigma: of the blur, in pixels.
        colour: which are taken: the six blends around the hue, and the hue.
        finish: which are taken: the loss of colour, and the blur.
    """

    box: Float[Tensor, "b 4"]
    flip: Bool[Tensor, " b"]
    blends: Float[Tensor, "b 7 3"]
    turn: Float[Tensor, " b"]
    sigma: Float[Tensor, " b"]
    colour: Bool[Tensor, "b 7"]
    finish: Bool[Tensor, "b 2"]

    def of(self, rows: Int[Tensor, " n"]) -> "Plan":
        """What is done to some of the samples."""
        return Plan(*(each.index_select(0, rows) for each in vars(self).values()))


class Views(nn.Module):
    """Random resized crop, flip, colour jitter, grey and Gaussian blur, as torchvision's, for a batch at once.

    Brightness, contrast, saturation and grey are one formula with three weights, so that samples differ in numbers and
    not in what is computed. The four colour changes come in a random order, drawn for each sample like all the rest.

    On a CPU samples that take the same steps go together, a few at a time: each step then works on a core's cache, and
    nobody pays for a step not taken. On a GPU all samples go through all steps, with weights that change nothing where
    a step is not taken: to ask how many take it would be to wait for the answer.

    Reference: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, appendix A.

    Args:
        side: of a view, in pixels.
        area: of the crop, lowest and highest share of the image's.
        aspect: of the crop, lowest and highest width / height.
        flip: probability of being mirrored.
        jitter: probability of the four colour changes.
        brightness: its factor is drawn from 1 ± this, not below 0.
        contrast: likewise.
        saturation: likewise.
        hue: its turn is drawn from ± this, in revolutions; 0.5 is any hue.
        grey: probability of losing the colour.
        blur: probability of being blurred.
        kernel: width of the blur in pixels, odd; the paper takes a tenth of the side.
        sigma: of the blur in pixels, lowest and highest.

    Attributes:
        slots: how many random numbers a view takes.

    Raises:
        ValueError: a setting out of range.
    """

    PARTS = (TRIES, TRIES, 2, 1, 1, 4, 3, 1, 1, 1, 1)
    slots = sum(PARTS)
    keep: Tensor
    to_grey: Tensor

    def __init__(
        self,
        side: int,
        area: Sequence[float],
        aspect: Sequence[float],
        flip: float,
        jitter: float,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        grey: float,
        blur: float,
        kernel: int,
        sigma: Sequence[float],
    ) -> None:
        super().__init__()
        check_chances(flip=flip, jitter=jitter, grey=grey, blur=blur)
        check_ranges(area=area, aspect=aspect, sigma=sigma)
        check_strengths(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
        check_sizes(side, kernel)
        self.side, self.kernel = side, kernel
        self.area, self.aspect, self.sigma = area, aspect, sigma
        self.flip, self.jitter, self.grey, self.blur = flip, jitter, grey, blur
        strengths = (brightness, contrast, saturation)
        # Lowest and highest factors, and turns.
        self.factors = [*(max(0.0, 1 - each) for each in strengths), -hue], [*(1 + each for each in strengths), hue]
        for name, weights in (("keep", pixels.KEEP), ("to_grey", pixels.TO_GREY)):
            self.register_buffer(name, torch.tensor(weights), persistent=False)

    @torch.no_grad()
    def forward(
        self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"], draws: Float[Tensor, "b slots"]
    ) -> Float[Tensor, "b 3 s s"]:
        """One view of each image, in 0..1.

        Args:
            image: pixels, RGB: uint8 in 0..255, or floating point in 0..1.
            draws: numbers in [0, 1), `slots` for each image; the view is a function of the image and of these alone.
        """
        plan = self.plan(draws, image.shape[2], image.shape[3])
        views = torch.empty(len(image), 3, self.side, self.side, device=image.device)
        most = max(1, (2**20 if image.is_cpu else 2**26) // (3 * self.side**2))
        with torch.autocast(image.device.type, enabled=False):
            for rows, steps in alike(plan.colour, most):
                views.index_copy_(0, rows, self.crop_and_jitter(image.index_select(0, rows), plan.of(rows), steps))
            for rows, steps in alike(plan.finish, most):
                if any(steps):
                    views.index_copy_(0, rows, self.grey_and_blur(views.index_select(0, rows), plan.of(rows), steps))
        return views

    def plan(self, draws: Float[Tensor, "b slots"], height: int, width: int) -> Plan:
        """What the numbers mean for images of this size."""
        parts = torch.split(draws, list(self.PARTS), dim=1)
        areas, aspects, place, flip, jitter, levels, order, hue, grey, blur, sigma = parts
        areas, aspects = between(areas, *self.area), between(aspects, *map(math.log, self.aspect)).exp()
        jittered, greyed, blurred = jitter < self.jitter, grey < self.grey, blur < self.blur
        *factors, turn = (between(*each) for each in zip(levels.chunk(4, dim=1), *self.factors, strict=True))
        changes = pixels.blend_weights(torch.cat(factors, dim=1), order.argsort(1))
        # Three changes in a random order, and the hue at a random place among them, is a random order of four.
        after = torch.arange(3, device=draws.device) >= (4 * hue).floor()
        colour = torch.cat([~after & jittered, after & jittered, jittered], dim=1)
        blends = torch.cat([changes, changes, self.to_grey.expand(len(draws), 1, 3)], dim=1)
        taken = torch.cat([colour[:, :6], greyed], dim=1)[:, :, None]
        return Plan(
            box=self.boxes(areas, aspects, place, height, width),
            flip=flip[:, 0] < self.flip,
            blends=torch.where(taken, blends, self.keep),
            turn=torch.where(jittered, turn, 0.0)[:, 0],
            sigma=torch.where(blurred, between(sigma, *self.sigma), 0.0)[:, 0],
            colour=colour,
            finish=torch.cat([greyed, blurred], dim=1),
        )

    def boxes(
        self,
        areas: Float[Tensor, "b tries"],
        aspects: Float[Tensor, "b tries"],
        place: Float[Tensor, "b 2"],
        height: int,
        width: int,
    ) -> Float[Tensor, "b 4"]:
        """Crops by torchvision's law: the first try that fits into the image, else the largest one in its middle.

        Args:
            areas: of each try, as a share of the image's.
            aspects: of each try, width / height.
            place: where in the room that it has a crop lies, from the top and from the left.
            height: of the image.
            width: of the image.

        Returns:
            Top, left, height, width.
        """
        covered = height * width * areas
        high, wide = (covered / aspects).sqrt().round(), (covered * aspects).sqrt().round()
        fits = (high >= 1) & (high <= height) & (wide >= 1) & (wide <= width)
        first, found = fits.int().argmax(1, keepdim=True), fits.any(1, keepdim=True)
        narrowest, widest = self.aspect
        high = torch.where(found, high.gather(1, first), min(height, round(width / narrowest)))
        wide = torch.where(found, wide.gather(1, first), min(width, round(height * widest)))
        room = torch.cat([height - high, width - wide], dim=1)
        drawn = torch.minimum((place * (room + 1)).floor(), room)  # the product may be rounded up to room + 1
        return torch.cat([torch.where(found, drawn, (room / 2).floor()), high, wide], dim=1)

    def crop_and_jitter(
        self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"], plan: Plan, steps: list[bool]
    ) -> Float[Tensor, "b 3 s s"]:
        """Crops, with those colour steps that are given."""
        view = pixels.crop(pixels.as_float(image), plan.box, plan.flip, self.side)
        *blends, turned = steps
        for number, weights in enumerate(plan.blends[:, :6].unbind(1)):
            if number == 3 and turned:
                pixels.turn_hue_(view, plan.turn)
            if blends[number]:
                pixels.blend_(view, weights)
        return view

    def grey_and_blur(self, view: Float[Tensor, "b 3 s s"], plan: Plan, steps: list[bool]) -> Float[Tensor, "b 3 s s"]:
        """Views, with those last steps that are given."""
        greyed, blurred = steps
        if greyed:
            pixels.blend_(view, plan.blends[:, -1])
        return pixels.blur(view, plan.sigma, self.kernel) if blurred else view


def alike(taken: Bool[Tensor, "b steps"], most: int) -> Iterator[tuple[Int[Tensor, " n"], list[bool]]]:
    """Samples to be worked on together, at `most` so many, and the steps that they go through."""
    samples, steps = taken.shape
    if not taken.is_cpu:
        for rows in torch.split(torch.arange(samples, device=taken.device), most):
            yield rows, [True] * steps
        return
    course = (taken.long() << torch.arange(steps)).sum(1)
    for code in sorted(set(course.tolist())):
        rows = (course == code).nonzero()[:, 0]
        for few in rows.chunk(math.ceil(len(rows) / most)):
            yield few, [bool(code >> step & 1) for step in range(steps)]


def between(numbers: Float[Tensor, "b n"], low: float, high: float) -> Float[Tensor, "b n"]:
    """Numbers of [0, 1) as numbers of [low, high)."""
    return low + (high - low) * numbers


def check_chances(**chances: float) -> None:
    """Refuses probabilities out of 0..1."""
    for name, value in chances.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must be a probability in 0..1.")


def check_ranges(**ranges: Sequence[float]) -> None:
    """Refuses what is no range of positive numbers, lowest first."""
    for name, values in ranges.items():
        if len(values) != 2 or not 0 < values[0] <= values[1]:
            raise ValueError(f"{name}={list(values)} must be two numbers above 0, the lower one first.")
        if name == "area" and values[1] > 1:
            raise ValueError(f"area={list(values)}: a crop cannot be larger than the image, whose area is 1.")


def check_sizes(side: int, kernel: int) -> None:
    """Refuses a kernel without a middle, or one that a reflection at the border cannot fill."""
    if side < 1:
        raise ValueError(f"side={side} must be 1 or more.")
    if kernel % 2 == 0 or not 0 < kernel < 2 * side:
        raise ValueError(f"kernel={kernel} must be an odd number, less than twice side={side}.")


def check_strengths(**strengths: float) -> None:
    """Refuses strengths of the colour changes below 0, and a hue beyond half a revolution."""
    for name, value in strengths.items():
        if value < 0 or (name == "hue" and value > 0.5):
            raise ValueError(f"{name}={value} must be 0 or more{', and at most 0.5' if name == 'hue' else ''}.")
