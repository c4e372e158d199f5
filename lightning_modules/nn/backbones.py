"""The trunk: any network of timm, or torchvision's AlexNet, that turns images into one feature vector each."""

import copy
import difflib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import timm
import torch
from jaxtyping import Float, UInt8
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from lightning_modules.nn import alexnet, chain
from lightning_modules.nn import weights as pretrained


class Encoder(nn.Module):
    """Images in, pooled features out, with the normalisation that the weights were made with inside.

    A batch carries plain pixels, and what they must be divided by is a fact of the weights: kept here as buffers, it
    travels with them into every checkpoint, and no data set has to know it.

    Args:
        name: any name that timm knows, with or without a tag (`resnet50`, `resnet50.a1_in1k`), or
            `torchvision:alexnet`, which gives its FC7.
        weights: `none` (random), `hub` (the library's own, downloaded once) or the path of one of its state dicts.
        mean: of the three channels, in 0..1; None takes the weights' own (ImageNet's if there are none).
        std: likewise.
        stem: `default`, or `small`: a 3 × 3 first convolution of stride 1 and no pooling after it, which is how ResNets
            are fitted to images of 32 to 96 pixels. Reference: He et al., Deep Residual Learning, 2016, section 4.2.
        options: further arguments for `timm.create_model`, such as `drop_path_rate` or `img_size`.

    Attributes:
        features: the length of a feature vector.
        depth: how many links of the network `below` runs, and `above` leaves out; 0 until `split_after` was called.

    Raises:
        ValueError: an unknown name, stem or option, or weights of another network.
        FileNotFoundError: a weights file that is not there.
    """

    def __init__(
        self,
        name: str,
        weights: str | None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        stem: str = "default",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"name": name, "weights": weights, "mean": mean, "std": std, "stem": stem}
        self.settings["options"] = options
        self.random = weights in (None, "none")
        self.model = build(name, weights or "none", stem, options or {}).to(memory_format=torch.channels_last)
        self.features = width(self.model)
        self.depth = 0
        own: Mapping[str, Any] = {} if self.random else self.model.pretrained_cfg
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", channels("mean", mean or own.get("mean", IMAGENET_DEFAULT_MEAN)))
        self.register_buffer("std", channels("std", std or own.get("std", IMAGENET_DEFAULT_STD)))

    def forward(self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Normalises, then runs the network.

        Args:
            image: pixels, RGB: uint8 in 0..255, or floating point in 0..1 (gradients flow through it).
        """
        return self.model(self.normalise(image))

    def split_after(self, frozen: Iterable[str], side: int) -> tuple[int, ...]:
        """Splits the network behind its longest frozen beginning, whose output then needs computing only once.

        Args:
            frozen: names of frozen parts, such as `model.layer1` or `model.layer4.0`.
            side: of the images, in pixels.

        Returns:
            The shape (C, H, W) of one image's maps there; () if nothing at its beginning is frozen, or if the network
            is not a chain of modules, and `depth` is 0 then.
        """
        row = chain.links(self.model)
        depth = chain.frozen_links(row, [name.removeprefix("model.") for name in frozen])
        # Links without parameters are frozen by nature: a beginning of them alone is not worth keeping.
        holds = any(True for _, module in row[:depth] for _ in module.parameters())
        shape = chain.maps_after(self.model, depth, side) if holds else None
        self.depth = depth if shape else 0
        return shape or ()

    def below(self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c ..."]:
        """What the network's first `depth` links make of images."""
        return chain.run(chain.links(self.model)[: self.depth], self.normalise(image))

    def above(self, maps: Float[Tensor, "b c ..."]) -> Float[Tensor, "b d"]:
        """What the other links make of that; after `below` it is what `forward` gives."""
        return chain.run(chain.links(self.model)[self.depth :], maps)

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode for a while; what trains goes on training afterwards."""
        return chain.evaluating(self)

    def state_dict_below(self) -> dict[str, Tensor]:
        """The tensors that `below` depends on."""
        names = tuple(f"model.{name}." for name, _ in chain.links(self.model)[: self.depth])
        return {key: value for key, value in self.state_dict().items() if key.startswith((*names, "mean", "std"))}

    def normalise(self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """(image − mean) / std, channels last.

        Over whole rows of pixels, and in place where the floats are our own: on a CPU that halves the time of
        broadcasting over an innermost axis of 3.
        """
        batch, _, height, width = image.shape
        rows = image.permute(0, 2, 3, 1).reshape(-1, 3 * width)
        mean, std = (each.flatten().repeat(width) for each in (self.mean, self.std))
        if image.is_floating_point():
            rows = (rows.to(mean.dtype) - mean) / std
        else:
            rows = rows.to(mean.dtype).sub_(mean * 255).div_(std * 255)
        return rows.view(batch, height, width, 3).permute(0, 3, 1, 2)

    def twin(self) -> "Encoder":
        """A second encoder of the same settings: the same pretrained weights, or random ones of its own."""
        return type(self)(**self.settings) if self.random else copy.deepcopy(self)


def build(name: str, weights: str, stem: str, options: Mapping[str, Any]) -> Any:
    """The network without its classifier, weights loaded, stem exchanged."""
    check_name(name)
    if stem not in ("default", "small"):
        raise ValueError(f"encoder.stem={stem!r} is not one of: default, small.")
    if stem == "small" and weights == "hub":
        raise ValueError("encoder.stem=small has a first convolution that no published weights fit: use weights=none.")
    try:
        model = create(name, weights, **options)
    except TypeError as error:
        raise ValueError(f"encoder.options={dict(options)}: {name} does not take them ({error}).") from error
    if stem == "small":
        shrink_stem(model, name)
    if weights not in ("none", "hub"):
        pretrained.load_file(model, weights, name)
    return model


def create(name: str, weights: str, **options: Any) -> Any:
    """The network without its classifier, with its published weights if `weights` is `hub`."""
    if name == alexnet.NAME:
        return alexnet.create(weights, **options)
    if weights == "hub":
        return pretrained.create_from_hub(name, **options)
    return timm.create_model(name, num_classes=0, **options)


def check_name(name: str) -> None:
    """Refuses what timm does not know and tells the nearest names."""
    if name == alexnet.NAME:
        return
    if name.startswith(("torchvision:", "alexnet")):
        raise ValueError(f"encoder.name={name!r}: of torchvision there is {alexnet.NAME} alone; timm has the others.")
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        nearest = difflib.get_close_matches(architecture, known, n=3, cutoff=0.5)
        hint = f"the nearest are {', '.join(nearest)}" if nearest else "see timm.list_models()"
        raise ValueError(f"encoder.name={name!r} is no model of timm {timm.__version__}: {hint}.")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(f"encoder.name={name!r}: {architecture} has no weights {tag!r}; it has {', '.join(tags)}.")


def width(model: Any) -> int:
    """The length of the features: those before the classifier, which a few networks widen after pooling."""
    return int(getattr(model, "head_hidden_size", model.num_features))


def shrink_stem(model: Any, name: str) -> None:
    """Exchanges a ResNet's 7 × 7 stride-2 convolution and max pooling, in place, for a 3 × 3 one of stride 1."""
    if not (isinstance(getattr(model, "conv1", None), nn.Conv2d) and hasattr(model, "maxpool")):
        raise ValueError(
            f"encoder.stem=small is for ResNets with a plain first convolution; {name} is none: use stem=default."
        )
    model.conv1 = nn.Conv2d(3, model.conv1.out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def channels(name: str, values: Sequence[float]) -> Float[Tensor, "3 1 1"]:
    """Three numbers as a tensor that broadcasts over images."""
    if len(values) != 3:
        raise ValueError(f"encoder.{name}={list(values)} must have three values, one a channel.")
    return torch.tensor([float(value) for value in values]).view(3, 1, 1)
