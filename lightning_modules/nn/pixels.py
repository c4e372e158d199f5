"""Image operations on a whole batch, each sample with parameters of its own; equal to torchvision's, one by one."""

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

KEEP, TO_GREY = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)  # weights for `blend_`


def as_float(image: UInt8[Tensor, "b c h w"] | Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Pixels in 0..1, float32."""
    return image.float() if image.is_floating_point() else image.float().div_(255)


def crop(
    image: Float[Tensor, "b c h w"], box: Float[Tensor, "b 4"], flip: Bool[Tensor, " b"], side: int
) -> Float[Tensor, "b c s s"]:
    """Crops resized to side × side, bilinear and antialiased, some of them mirrored left to right.

    Antialiasing changes nothing where a crop is enlarged, and crops of an image no larger than `side` all are: each new
    pixel then lies between two old ones. Of larger images every pixel may count, and two matrices say how much.

    Args:
        image: a batch of one size.
        box: top, left, height and width of each crop, in whole pixels; it lies within the image.
        flip: which are mirrored.
        side: of the crops that come out, in pixels.
    """
    return enlarge(image, box, flip, side) if max(image.shape[2:]) <= side else resize(image, box, flip, side)


def enlarge(
    image: Float[Tensor, "b c h w"], box: Float[Tensor, "b 4"], flip: Bool[Tensor, " b"], side: int
) -> Float[Tensor, "b c s s"]:
    """`crop` of images no larger than `side`: first every row between two old ones, then every column."""
    samples, channels, height, width = image.shape
    upper, lower, share = neighbours(box, flip, side)
    rows, first = image.flatten(0, 2), height * torch.arange(samples * channels, device=box.device)
    places = (first.view(samples, channels, 1) + row[:, None] for row in (upper[0], lower[0]))
    above, below = (rows.index_select(0, each.flatten()).view(samples, channels, side, width) for each in places)
    tall = above.lerp_(below, share[0, :, None, :, None])
    columns = (column[:, None, None].expand(-1, channels, side, -1) for column in (upper[1], lower[1]))
    left, right = (tall.gather(3, each) for each in columns)
    return left.lerp_(right, share[1, :, None, None])


def neighbours(
    box: Float[Tensor, "b 4"], flip: Bool[Tensor, " b"], side: int
) -> tuple[Int[Tensor, "2 b s"], Int[Tensor, "2 b s"], Float[Tensor, "2 b s"]]:
    """Of each new row and column the two old ones that it lies between, and the second one's share in it."""
    start, extent = box.T[:, :, None].chunk(2)
    middle = torch.arange(side, device=box.device) + 0.5
    middle = torch.stack([middle.expand(len(box), -1), torch.where(flip[:, None], side - middle, middle)])
    place = torch.minimum(middle * (extent / side) - 0.5, extent - 1).clamp_(min=0)
    upper = place.floor()
    lower = torch.minimum(upper + 1, extent - 1)
    return (upper + start).long(), (lower + start).long(), place - upper


def resize(
    image: Float[Tensor, "b c h w"], box: Float[Tensor, "b 4"], flip: Bool[Tensor, " b"], side: int
) -> Float[Tensor, "b c s s"]:
    """`crop` as two matrices for each sample: rows · image · columnsᵀ, as exact as float32 products are set to be."""
    samples, channels, high, wide = image.shape
    top, left, height, width = box.unbind(1)
    rows, columns = resize_matrix(top, height, high, side), resize_matrix(left, width, wide, side)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return rows[:, None] @ (image.flatten(1, 2) @ columns.mT).view(samples, channels, high, side)


def resize_matrix(
    start: Float[Tensor, " b"], extent: Float[Tensor, " b"], size: int, side: int
) -> Float[Tensor, "b side size"]:
    """How much each of `side` new pixels takes of each of `size` old ones, of which it sees `extent` from `start` on.

    The weights are a triangle around the new pixel's centre, which reaches one pixel to either side: an old or a new
    one, whichever is larger.
    """
    scale = (extent / side)[:, None, None]
    centre = (torch.arange(side, device=start.device)[:, None] + 0.5) * scale
    pixel = torch.arange(size, device=start.device) + 0.5 - start[:, None, None]
    inside = (pixel > 0) & (pixel < extent[:, None, None])
    weights = (pixel - centre).abs_().div_(scale.clamp(min=1)).neg_().add_(1).clamp_(min=0).mul_(inside)
    return weights.div_(weights.sum(2, keepdim=True))


def blend_weights(factors: Float[Tensor, "b 3"], order: Int[Tensor, "b 3"]) -> Float[Tensor, "b 3 3"]:
    """Weights for `blend_` of brightness, contrast and saturation, in each sample's order.

    Args:
        factors: of the three; 1 changes nothing.
        order: which of the three comes first, second and last.
    """
    rest = torch.diag_embed(1 - factors)
    grey, mean = rest[:, :, 2], rest[:, :, 1]
    return torch.stack([factors, grey, mean], dim=2).gather(1, order[:, :, None].expand(-1, -1, 3))


def blend_(image: Float[Tensor, "b 3 h w"], weights: Float[Tensor, "b 3"]) -> None:
    """The sum of an image, its grey and the mean of its grey, each with a weight, cut to 0..1; in place.

    brightness f: (f, 0, 0),  contrast f: (f, 0, 1 − f),  saturation f: (f, 1 − f, 0),  loss of colour: (0, 1, 0)
    """
    own, other, mean = weights[:, :, None, None, None].unbind(1)
    red, green, blue = image.chunk(3, dim=1)
    grey = (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    constant = grey.mean((2, 3), keepdim=True) * mean
    image.mul_(own).add_(grey.mul_(other).add_(constant)).clamp_(0, 1)


def turn_hue_(image: Float[Tensor, "b 3 h w"], turn: Float[Tensor, " b"]) -> None:
    """Turns the hue by a part of a revolution and leaves value and saturation as they are; in place.

    On the hexagon of hues, in sextants from red on, a colour lies at ±(1 + (green + blue − red − low) / chroma), plus
    if it has more green than blue. From there the other way: a channel is at its highest up to one sextant from its own
    corner and at its lowest from two sextants on. Neither needs to know which channel is the highest.
    """
    red, green, blue = image.unbind(1)
    low = image.amin(1)
    chroma = image.amax(1).sub_(low)
    angle = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=1e-12)).add_(1).copysign_(green - blue)
    corners = 2 * torch.arange(3, device=image.device) - 6 * turn[:, None]  # of red, green and blue
    corners -= 6 * (corners / 6).round()
    torch.sub(angle[:, None], corners[:, :, None, None], out=image)  # −6..6: a distance, or 6 less it
    image.abs_().sub_(3).abs_().sub_(1).clamp_(0, 1).mul_(chroma[:, None]).add_(low[:, None])


def blur(image: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], kernel: int) -> Float[Tensor, "b c h w"]:
    """Gaussian blur with reflected borders.

    Args:
        image: of more than `kernel` // 2 pixels either way.
        sigma: of each sample, in pixels; 0 changes nothing.
        kernel: how many pixels wide, odd.
    """
    samples, channels, _, _ = image.shape
    offsets = torch.arange(kernel, device=image.device) - kernel // 2
    weights = (-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2).exp()
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None, None]
    padded = F.pad(image, [kernel // 2] * 4, mode="reflect").flatten(0, 1)[None]
    across = F.conv2d(padded, weights, groups=samples * channels)
    return F.conv2d(across, weights.mT, groups=samples * channels).view_as(image)
