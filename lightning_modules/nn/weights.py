"""Where a trunk's pretrained weights come from: a file, or timm's hub."""

import difflib
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from timm.models import load_state_dict as read_state_dict
from torch import Tensor, nn

# Tried, in this order, when a file does not fit, to say which network it was made for.
FAMILIAR = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "tf_efficientnet_lite0", "tf_efficientnet_lite4"),
    *("efficientnet_b0", "mobilenetv3_small_100", "mobilenetv3_large_100", "convnext_atto", "convnext_tiny"),
    *("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "densenet121", "regnety_008"),
)


def load_file(model: nn.Module, path: str | Path, name: str) -> None:
    """Loads a timm state dict into a headless timm model, strictly, head tensors left out.

    Args:
        model: the model that `timm.create_model(name, num_classes=0)` gave.
        path: a `.pth`, `.pt` or `.safetensors` file.
        name: timm's name of the model, for the error message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no state dict, or one of another network.
    """
    theirs = without_head(read(path), model)
    ours = model.state_dict()
    fitting = sum(key in theirs and theirs[key].shape == tensor.shape for key, tensor in ours.items())
    if fitting < len(ours) or len(theirs) > len(ours):
        raise ValueError(
            f"weights={path} do not fit {name}: {fitting} of its {len(ours)} tensors are in the file with the right "
            f"shape, the file has {len(theirs)}; {explain(theirs, ours, name)}"
        )
    model.load_state_dict(theirs, strict=True)


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, whatever wrapper (`state_dict`, `model`, `module.`) they came in."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"weights={path}: there is no such file; give a timm state dict (.pth, .pt or .safetensors), "
            "weights=hub to download the weights, or weights=none to start from random ones."
        )
    try:
        tensors = read_state_dict(str(path))
    except Exception as error:  # a file that is no checkpoint can fail in a dozen ways inside torch and safetensors
        why = (
            str(error).splitlines()[0].partition(". ")[0]
        )  # what torch says first; then come hints at its own arguments
        raise ValueError(f"weights={path} cannot be read as weights ({why}): give a timm state dict.") from error
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"weights={path} holds no state dict; a mapping of names to tensors is wanted.")
    return tensors


def without_head(tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The tensors without the classifier's: its classes are those of the data set the weights were made on."""
    heads = model.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(prefixes)}


def explain(tensors: Mapping[str, Tensor], ours: Mapping[str, Tensor], name: str) -> str:
    """The likeliest reason why a file does not fit, as the end of a sentence."""
    if any(key.startswith("encoder.") for key in tensors):
        return "it is a checkpoint of a run: hand it over with the warm_start callback instead."
    for candidate in [*FAMILIAR, *difflib.get_close_matches(name, timm.list_models(), n=5)]:
        if candidate != name and resemble(tensors, candidate):
            return f"these weights look like {candidate} (encoder.name={candidate})."
    odd = [key for key in tensors if key not in ours] + [key for key in ours if key not in tensors]
    return f"no familiar timm model has such tensors, the first that is on one side alone is {(odd or list(ours))[0]}."


def resemble(tensors: Mapping[str, Tensor], name: str) -> bool:
    """Whether the tensors are those of timm's `name`, by names and shapes."""
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in timm.create_model(name, num_classes=0).state_dict().items()}
    return all(key in tensors and tensors[key].shape == shape for key, shape in shapes.items())


def create_from_hub(name: str, **options: Any) -> Any:
    """A headless timm model with its published weights, from the local cache or the network.

    Without a network timm retries for the better part of a minute before it fails. So the cache is asked first, and
    then the server, once.

    Raises:
        ValueError: timm has no weights for the model, or they can be had neither here nor from the network.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ValueError(f"weights=hub: timm publishes no weights for {name}; give weights=<file> or weights=none.")
    cached = cached_file(config.hf_hub_id, config.hf_hub_filename)
    if cached is None and not online():
        raise ValueError(
            f"weights=hub: the weights of {name} are not in the cache and {huggingface_hub.constants.ENDPOINT} cannot "
            "be reached; give weights=<file> with a timm state dict, or weights=none."
        )
    overlay = {"file": cached} if cached else None
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **options)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"weights=hub: {name} failed to load ({reason}); give weights=<file> instead.") from error


def cached_file(repository: str | None, filename: str | None) -> str | None:
    """The weights' path in the hub's local cache, or None."""
    if repository is None:
        return None
    repository, _, revision = repository.partition("@")
    for candidate in (filename,) if filename else ("model.safetensors", "pytorch_model.bin"):
        found = huggingface_hub.try_to_load_from_cache(repository, candidate, revision=revision or None)
        if isinstance(found, str):
            return found
    return None


def online(url: str | None = None, seconds: float = 3.0) -> bool:
    """Whether the hub, or another URL, answers at all; proxies of the environment are used."""
    if huggingface_hub.constants.is_offline_mode():
        return False
    request = urllib.request.Request(url or huggingface_hub.constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=seconds).close()
    except urllib.error.HTTPError:
        return True  # an answer is an answer: some proxies refuse HEAD
    except OSError:
        return False
    return True
