"""LARS against a slow derivation, and among the plain settings."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_modules.nn.lars import LARS
from tests.toy_fashion import optimiser


def by_hand(weights, gradients, lr, decay, momentum, trust=0.001):
    """Algorithm 1 of You et al. for one parameter: where it is after each of the gradients."""
    velocity, places = torch.zeros_like(weights), []
    for gradient in gradients:
        length, slope = weights.square().sum().sqrt(), gradient.square().sum().sqrt()
        adapted = weights.ndim > 1 and length > 0 and slope > 0
        rate = trust * length / (slope + decay * length) if adapted else 1.0
        velocity = momentum * velocity + lr * rate * (gradient + decay * weights)
        weights = weights - velocity
        places.append(weights)
    return places


def parameters():
    """A convolution, a bias, a layer of zeros and a matrix, in double precision."""
    torch.manual_seed(0)
    shapes = [(4, 3, 2, 2), (4,), (2, 5), (5, 6)]
    made = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    nn.init.zeros_(made[2])
    return made


def take(optimizer, members, seed):
    """A step along random gradients."""
    random = torch.Generator().manual_seed(seed)
    for member in members:
        member.grad = torch.randn(member.shape, generator=random, dtype=member.dtype)
    optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_every_step_is_that_of_the_paper(decay, momentum):
    members, gradients = parameters(), [[torch.randn_like(p) for p in parameters()] for _ in range(4)]
    gradients[2][3].zero_()  # one that is no direction at all
    optimizer = LARS([{"params": members, "weight_decay": decay}], lr=3.0, momentum=momentum)
    expected = [
        by_hand(member.detach().clone(), each, 3.0, decay, momentum)
        for member, each in zip(members, zip(*gradients, strict=True), strict=True)
    ]
    for number, step in enumerate(gradients):
        for member, gradient in zip(members, step, strict=True):
            member.grad = gradient.clone()
        optimizer.step()
        for member, places in zip(members, expected, strict=True):
            assert_close(member.detach(), places[number], rtol=1e-12, atol=1e-12)


def test_a_layer_moves_by_the_same_share_whatever_the_length_of_its_gradient():
    shares = []
    for scale in (1e-4, 1e4):
        weights = nn.Parameter(torch.full((3, 3), 2.0))
        weights.grad = torch.full((3, 3), scale)
        LARS([{"params": [weights]}], lr=10.0).step()
        shares.append(((2.0 - weights.detach()) / 2.0).mean().item())
    assert shares == pytest.approx([0.01, 0.01], rel=1e-4)


def test_settings_reach_it_and_a_parameter_without_gradient_stays():
    members = parameters()
    names = ["encoder.conv", "encoder.bias", "head.zeros", "head.matrix"]
    built = optimiser(name="lars", lr=0.5, weight_decay=0.3, momentum=0.8).build(zip(names, members, strict=True))
    assert isinstance(built, LARS)
    found = {id(p): group for group in built.param_groups for p in group["params"]}
    assert [found[id(p)]["weight_decay"] for p in members] == [0.3, 0.0, 0.3, 0.3]
    assert {group["momentum"] for group in built.param_groups} == {0.8}
    before = [member.detach().clone() for member in members]
    members[3].grad = torch.ones_like(members[3])
    built.step()
    assert [torch.equal(member, old) for member, old in zip(members, before, strict=True)] == [True, True, True, False]


def test_its_state_comes_back_from_a_checkpoint():
    members, copies = parameters(), parameters()
    before, resumed = (LARS([{"params": each}], lr=1.0) for each in (members, copies))
    take(before, members, seed=1)
    for copy, member in zip(copies, members, strict=True):
        copy.data.copy_(member.data)
    resumed.load_state_dict(deepcopy(before.state_dict()))
    take(before, members, seed=2)
    take(resumed, copies, seed=2)
    assert all(torch.equal(copy, member) for copy, member in zip(copies, members, strict=True))
