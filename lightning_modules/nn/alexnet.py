"""torchvision's AlexNet up to FC7: the trunk that the papers of its day froze, and that timm does not have."""

import urllib.error
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.models import AlexNet, AlexNet_Weights

from lightning_modules.nn import weights as pretrained

NAME = "torchvision:alexnet"


def create(weights: str, **options: Any) -> Any:
    """AlexNet without its last layer: images of 63 pixels or more (224 as trained) to (B, 4096), after FC7's ReLU.

    It is the one-tower variant; the original has two towers and local response normalisation.

    Reference: Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014.

    Args:
        weights: `none`, or `hub` for torchvision's own.
        options: further arguments of torchvision's class: `dropout`, which is off in eval mode.

    Raises:
        ValueError: the weights can be had neither from the local cache nor from the network.
    """
    model: Any = AlexNet(**options)
    model.classifier = model.classifier[:6]
    model.num_features = model.classifier[-2].out_features
    # What the encoder wants to know of a network, in timm's words.
    model.pretrained_cfg = {"classifier": "classifier.6", "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    if weights == "hub":
        pretrained.load_file(model, fetch(AlexNet_Weights.IMAGENET1K_V1.url), NAME)
    return model


def fetch(url: str) -> Path:
    """The file behind a URL in torch's local cache, downloaded if it is not there yet."""
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if path.is_file():
        return path
    advice = "give weights=<file> with torchvision's state dict, or weights=none."
    if not pretrained.online(url):
        raise ValueError(f"weights=hub: {path.name} is not in {path.parent} and {url} cannot be reached; {advice}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=False)
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        raise ValueError(f"weights=hub: {url} failed to download ({error}); {advice}") from error
    return path
