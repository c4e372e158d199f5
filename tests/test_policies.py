"""torchvision's random transforms, one picture at a time: each its own parameters, from its draw alone."""

import pytest
import torch
from torchvision.transforms import v2

from lightning_modules.nn.policies import PerImage

POLICIES = [v2.RandAugment(num_ops=2, magnitude=9), v2.TrivialAugmentWide(), v2.AugMix()]


def pictures(count):
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("transform", POLICIES, ids=lambda transform: type(transform).__name__)
def test_each_picture_is_changed_as_torchvision_would_with_its_seed(transform):
    image, draws = pictures(12), torch.rand(12, 1, generator=torch.Generator().manual_seed(1))
    changed = PerImage(transform)(image, draws)
    assert changed.shape == image.shape
    for row, draw in enumerate(draws[:, 0].tolist()):
        torch.manual_seed(int(draw * 2**24))
        assert torch.equal((changed[row] * 255).round().to(torch.uint8), transform(image[row]))


def test_the_same_picture_gets_many_changes_and_the_same_draw_the_same_one():
    module, image = PerImage(v2.RandAugment()), pictures(1).expand(40, -1, -1, -1)
    draws = torch.linspace(0, 0.99, 40)[:, None]
    changed = module(image, draws)
    assert len(changed.flatten(1).unique(dim=0)) > 30
    order = torch.randperm(40)
    assert torch.equal(module(image, draws[order]), changed[order])
    assert torch.equal(module(image.float() / 255, draws), changed)


def test_torchs_own_random_state_is_put_back():
    before = torch.get_rng_state()
    PerImage(v2.TrivialAugmentWide())(pictures(3), torch.rand(3, 1, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(TypeError):
        PerImage(lambda pixels: pixels + "no number")(pictures(3), torch.zeros(3, 1))
    assert torch.equal(torch.get_rng_state(), before)
