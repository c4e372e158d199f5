"""Affine maps of pictures: θ against hand-made matrices, torchvision and pixels; the generator and its parameters."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.transforms import v2

from lightning_modules.nn.collapse import movement, movement_scores
from lightning_modules.nn.spatial import (
    Affine,
    BoundedParameters,
    Generated,
    SpatialTransformer,
    compose,
    displacement,
    identity,
    identity_distance,
    split,
    warp,
)

RANGES = {"rotation": 30.0, "scale": 1.5, "shear": 0.3, "shift": 0.2}


def change(**given):
    """One change; what is not given leaves the picture as it is."""
    nothing = {"rotation": 0.0, "scale_x": 1.0, "scale_y": 1.0, "shear": 0.0, "shift_x": 0.0, "shift_y": 0.0}
    return Affine(*(torch.tensor([value]) for value in (nothing | given).values()))


def random_changes(count):
    def between(low, high):
        return torch.empty(count).uniform_(low, high)

    torch.manual_seed(0)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    scales = between(0.3, 3), between(0.3, 3) * mirror
    return Affine(between(-179, 179), *scales, between(-1, 1), between(-1, 1), between(-1, 1))


def dot(row, column, side=33):
    image = torch.zeros(1, 3, side, side)
    image[..., row, column] = 1
    return image


def place(image):
    """Row and column of the brightest pixel."""
    at = int(image[0, 0].argmax())
    return divmod(at, image.shape[-1])


def generator(**changes):
    settings = {"width": 4, "noise": 0, "ranges": None, "start": 0.0, "padding": "zeros"} | changes
    return SpatialTransformer(**settings)


def test_theta_undoes_shear_scale_turn_and_shift_one_after_the_other():
    changes = random_changes(20)
    for row, theta in enumerate(compose(changes)):
        angle, wide, high, shear, right, down = (float(value[row]) for value in changes)
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        scale = torch.tensor([[wide, 0, 0], [0, high, 0], [0, 0, 1]])
        sheared = torch.tensor([[1, shear, 0], [0, 1, 0], [0, 0, 1]])
        turned = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        shifted = torch.tensor([[1, 0, 2 * right], [0, 1, 2 * down], [0, 0, 1]])
        forward = (shifted @ turned @ sheared @ scale).double()
        assert_close(theta.double(), forward.inverse()[:2], atol=1e-5, rtol=1e-5)


def test_split_is_the_inverse_of_compose():
    changes = random_changes(500)
    for found, given in zip(split(compose(changes)), changes, strict=True):
        assert_close(found, given, atol=1e-4, rtol=1e-4)
    free = torch.randn(500, 2, 3, generator=torch.Generator().manual_seed(1))
    assert_close(compose(split(free)), free, atol=2e-3, rtol=1e-3)


def test_split_of_a_squeezed_map_is_no_number():
    squeezed = torch.tensor([[[1.0, 2, 0], [2, 4, 0]]])
    assert not torch.stack(split(squeezed)).isfinite().all()


@pytest.mark.parametrize(
    ("given", "start", "end"),
    [
        ({"shift_x": 4 / 33}, (16, 16), (16, 20)),
        ({"shift_y": 4 / 33}, (16, 16), (20, 16)),
        ({"rotation": 90.0}, (16, 24), (24, 16)),  # clockwise: what was on the right comes to lie below
        ({"scale_x": 2.0}, (16, 20), (16, 24)),
        ({"scale_y": 0.5}, (24, 16), (20, 16)),
        ({"scale_y": -1.0}, (24, 16), (8, 16)),
        ({"shear": 1.0}, (20, 16), (20, 20)),
        ({"rotation": 90.0, "shift_x": 4 / 33}, (16, 24), (24, 20)),  # turned first, then shifted
    ],
)
def test_content_goes_where_the_words_say(given, start, end):
    theta = compose(change(**given))
    assert place(warp(dot(*start), theta)) == end


def test_the_sampler_is_torchvisions():
    image = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    bilinear = v2.InterpolationMode.BILINEAR
    expected = v2.functional.affine(image, 20, [4, -6], 1.2, [0.0, 0.0], interpolation=bilinear)
    theta = compose(change(rotation=20.0, scale_x=1.2, scale_y=1.2, shift_x=0.1, shift_y=-0.15))
    assert_close(warp(image, theta), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_the_identity_gives_the_picture_back(padding):
    image = torch.rand(3, 3, 32, 24)
    assert_close(warp(image, identity(image), padding), image, atol=1e-5, rtol=0)


def test_bfloat16_around_it_moves_no_pixel():
    image, module = torch.rand(2, 3, 32, 32), generator(start=0.1)
    with torch.no_grad():
        expected, theta = module(image)
        with torch.autocast("cpu", torch.bfloat16):
            found, same = module(image)
            again = warp(image, theta)
    assert found.dtype == same.dtype == torch.float32
    assert torch.equal(same, theta), "with zero weights θ is its bias, which bfloat16 would have rounded"
    assert_close(found, expected, atol=1e-6, rtol=0)
    assert_close(again, expected, atol=1e-6, rtol=0)


def test_displacement_is_that_of_the_pixel_that_moves_most():
    theta = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    grid = F.affine_grid(theta, [5, 1, 41, 41], align_corners=True)
    still = F.affine_grid(identity(theta), [5, 1, 41, 41], align_corners=True)
    expected = (grid - still).norm(dim=-1).flatten(1).amax(1) / 2
    assert_close(displacement(theta), expected)
    assert displacement(compose(change(shift_x=0.25))).item() == pytest.approx(0.25)
    by_hand = [(each - torch.eye(2, 3)).abs().sum().item() / 6 for each in theta]
    assert identity_distance(theta).tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize("ranges", [None, RANGES])
def test_it_starts_at_the_identity_or_as_far_from_it_as_it_is_told(ranges):
    image = torch.rand(4, 3, 32, 32)
    still, theta = generator(ranges=ranges)(image)
    assert_close(theta, identity(image), atol=1e-6, rtol=0)
    assert_close(still, image, atol=1e-5, rtol=0)
    torch.manual_seed(0)
    away = generator(ranges=ranges, start=0.4)(image)[1]
    if ranges is None:
        assert_close((away - identity(image)).abs(), torch.full((4, 2, 3), 0.4))
    else:
        found = {name: value.abs()[0].item() for name, value in split(away)._asdict().items()}
        assert found["rotation"] == pytest.approx(12, abs=1e-3)
        assert [found["shift_x"], found["shift_y"]] == pytest.approx([0.08, 0.08], abs=1e-4)
        assert abs(math.log(found["scale_x"])) == pytest.approx(0.4 * math.log(1.5), abs=1e-4)
        assert found["shear"] == pytest.approx(0.12, abs=1e-4)


def test_bounded_parameters_never_leave_their_ranges():
    theta = BoundedParameters(RANGES)(torch.randn(1000, 6, generator=torch.Generator().manual_seed(0)) * 20)
    found = split(theta)
    assert found.rotation.abs().max() <= 30 + 1e-3
    assert found.rotation.abs().max() > 29, "and reach them"
    for scale in (found.scale_x, found.scale_y):
        assert scale.min() >= 1 / 1.5 - 1e-4
        assert scale.max() <= 1.5 + 1e-4
    assert found.shear.abs().max() <= 0.3 + 1e-4
    assert found.shift_x.abs().max() <= 0.2 + 1e-4
    turned = split(BoundedParameters({"rotation": 10.0})(torch.ones(1, 6)))
    assert turned.rotation.item() == pytest.approx(10 * math.tanh(1), abs=1e-4)
    assert [turned.scale_x.item(), turned.scale_y.item()] == pytest.approx([1, 1])
    assert [turned.shift_x.item(), turned.shear.item()] == pytest.approx([0, 0], abs=1e-6)


def test_every_number_can_be_learned():
    """The gradient of each of the six is what a small change of it does to the output."""
    for ranges in (None, RANGES):
        parameters = generator(ranges=ranges).affine
        raw = (torch.rand(1, 6, generator=torch.Generator().manual_seed(2)) / 5).double().requires_grad_()
        if ranges:
            parameters.bounds = parameters.bounds.double()
        assert torch.autograd.gradcheck(parameters, raw)


@pytest.mark.parametrize("side", [16, 32, 50])
def test_pictures_of_any_size_and_type(side):
    module = generator(start=0.2)
    pixels = torch.randint(0, 256, (2, 3, side, side + 6), dtype=torch.uint8)
    changed, theta = module(pixels)
    assert changed.shape == pixels.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert_close(changed, module(pixels.float() / 255)[0])
    assert_close(module.apply_to(pixels.float() / 255, theta), changed)


def test_noise_makes_many_changes_of_one_picture_and_none_of_one_noise():
    torch.manual_seed(0)
    module, image = generator(noise=3), torch.rand(1, 3, 32, 32).expand(4, -1, -1, -1)
    draws = torch.rand(4, 3)
    theta = module(image, draws)[1]
    assert len(theta.flatten(1).unique(dim=0)) == 4
    assert_close(theta, identity(image), atol=0.5, rtol=0)
    assert (theta - identity(image)).abs().mean() > 0.02
    assert torch.equal(module(image, draws[:1].expand(4, -1))[1][0], module(image, draws[:1].expand(4, -1))[1][3])
    with pytest.raises(ValueError, match="noise input: 3 numbers"):
        module(image)
    with pytest.raises(ValueError, match="noise input: 3 numbers"):
        module(image, torch.rand(4, 2))


def test_generated_changes_the_share_that_it_is_told():
    inner = generator(start=0.3)
    image, draws = torch.rand(400, 3, 16, 16), torch.rand(400, 1, generator=torch.Generator().manual_seed(0))
    every, some = Generated(inner, 1.0), Generated(inner, 0.25)
    assert every.slots == some.slots == 1
    assert_close(every(image, draws), inner(image)[0])
    changed = (some(image, draws) != image).flatten(1).any(1)
    assert torch.equal(changed, draws[:, 0] < 0.25)
    assert_close(some(image, draws)[changed], inner(image)[0][changed])
    noisy = generator(noise=2)
    draws = torch.rand(400, 3)
    assert Generated(noisy, 1.0).slots == 3
    assert_close(Generated(noisy, 1.0)(image, draws), noisy(image, draws[:, 1:])[0])


def scores(theta):
    return movement_scores({name: value.double() for name, value in movement(theta).items()})


def test_the_detector_tells_planted_generators_apart():
    same = compose(change(rotation=40.0)).repeat(100, 1, 1)
    tilted = compose(Affine(torch.linspace(-45, 45, 100), *(torch.full((100,), v) for v in (1.0, 1.0, 0.0, 0.0, 0.0))))
    still = identity(same)
    barely = compose(change(rotation=2.0)).repeat(100, 1, 1)
    assert scores(still) == {
        **dict.fromkeys(("identity_distance", "identity_spread", "displacement", "squeezed"), 0.0),
        **dict.fromkeys(("unchanged", "collapsed", "alike"), 1.0),
    }
    assert scores(barely)["collapsed"] == 1, "a very small turn is what the source found"
    assert scores(barely)["unchanged"] == 0
    assert scores(tilted)["collapsed"] == scores(same)["collapsed"] == 0
    assert scores(tilted)["identity_spread"] > 0.1
    assert scores(same)["identity_spread"] == pytest.approx(0, abs=1e-6)
    assert [scores(each)["alike"] for each in (tilted, same)] == [0, 1]
    mixed = torch.cat([still[:92], same[:8]])
    assert scores(mixed)["unchanged"] == pytest.approx(0.92)
    assert scores(mixed)["collapsed"] == 1
    assert scores(torch.cat([still[:50], same[:50]]))["collapsed"] == 0


def test_squeezed_pictures_are_counted_and_a_theta_that_is_no_number_is_refused():
    theta = identity(torch.zeros(10, 1)).clone()
    theta[:3, 0] = 0
    assert scores(theta)["squeezed"] == pytest.approx(0.3)
    theta[7, 1, 2] = math.nan
    with pytest.raises(ValueError, match="not a number for 1 of 10 pictures"):
        scores(theta)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"padding": "wrap"}, r"generator\.padding='wrap' is not one of: zeros, border, reflection"),
        ({"width": 0}, r"generator\.width=0 must be 1 or more"),
        ({"noise": -1}, r"generator\.noise=-1 must be 0 or more"),
        ({"start": 1.0}, r"generator\.start=1\.0"),
        ({"ranges": {"rotate": 10.0}}, r"generator\.ranges has no 'rotate'; it has rotation, scale, shear, shift"),
        ({"ranges": {"scale": 0.5}}, r"generator\.ranges\.scale=0\.5 is not a number from 1 to 100"),
        ({"ranges": {"scale": 1.0}}, "leaves nothing to change"),
        ({"ranges": {}}, "leaves nothing to change"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        generator(**changes)


def test_a_share_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"augment\.share=0"):
        Generated(generator(), 0.0)
