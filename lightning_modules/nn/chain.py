"""A network as a chain of modules, so that its frozen beginning can run apart from the rest."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Link = tuple[str, nn.Module]


def links(network: nn.Module, prefix: str = "") -> list[Link]:
    """(name, module) in the order in which the modules stand; containers are taken apart."""
    found: list[Link] = []
    for name, child in network.named_children():
        taken = links(child, f"{prefix}{name}.") if isinstance(child, nn.Sequential) else [(f"{prefix}{name}", child)]
        found += taken
    return found


def run(chain: Iterable[Link], x: Tensor) -> Tensor:
    """The links one after the other."""
    for _, module in chain:
        x = module(x)
    return x


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def maps_after(network: nn.Module, depth: int, side: int) -> tuple[int, ...] | None:
    """The shape (C, ...) of what one image is after the first `depth` links; None if the network is not its links.

    The ResNets and EfficientNets of timm are no more than their links in a row. Nothing in a module says so; the two
    ways of running it are compared on an image of random pixels.

    Args:
        network: whose forward pass is in question; left as it is.
        depth: links to run.
        side: of the image, in pixels.
    """
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    image = image.to(next(network.parameters()).device)
    try:
        with evaluating(network):
            maps = run(links(network)[:depth], image)
            whole, linked = network(image), run(links(network)[depth:], maps)
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, NotImplementedError):
        return None  # a link that takes or gives something else than one tensor
    same = whole.shape == linked.shape and torch.allclose(whole, linked, rtol=1e-4, atol=1e-5)
    return tuple(maps.shape[1:]) if same else None


def frozen_links(chain: Sequence[Link], frozen: Iterable[str]) -> int:
    """How many links from the beginning never change: those in a frozen part, and those that hold nothing.

    Args:
        chain: the links.
        frozen: names of frozen parts, such as `layer1` or `layer4.0`.
    """
    parts = tuple(frozen)
    for place, (name, module) in enumerate(chain):
        inside = any(name == part or name.startswith(f"{part}.") for part in parts)
        holds = any(True for _ in module.parameters()) or any(True for _ in module.buffers())
        if not inside and (holds or isinstance(module, nn.modules.dropout._DropoutNd)):
            return place
    return len(chain)
