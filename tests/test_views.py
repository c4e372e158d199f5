"""Random views: every operation against torchvision's, the law of the parameters, and what a view depends on."""

from collections import Counter

import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from lightning_modules.nn import pixels, views
from lightning_modules.nn.keyed import uniform
from lightning_modules.nn.views import Views

SETTINGS = {
    "side": 32, "area": (0.08, 1.0), "aspect": (3 / 4, 4 / 3), "flip": 0.5, "jitter": 0.8, "brightness": 0.8,
    "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "grey": 0.2, "blur": 0.5, "kernel": 5, "sigma": (0.1, 2.0),
}  # fmt: skip
COLOURS = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation, reference.adjust_hue)


def noise(samples=6, height=32, width=32):
    """Pixels that have nothing to do with their neighbours, some of them at the limits."""
    random = torch.Generator().manual_seed(0)
    return (torch.rand(samples, 3, height, width, generator=random) * 1.2 - 0.1).clamp_(0, 1)


def close(ours, theirs):
    assert_close(ours, theirs, rtol=0, atol=1e-5)


def draws_for(module, samples, seed=0):
    return uniform(seed, 0, torch.arange(samples), module.slots)


def torchvision_crop(image, box, side):
    top, left, height, width = (int(value) for value in box)
    return reference.resized_crop(image, top, left, height, width, [side, side], InterpolationMode.BILINEAR, True)


BOXES = {  # of an image of the given size: the whole of it, corners, one pixel, strips
    (32, 32): [(0, 0, 32, 32), (0, 0, 9, 13), (20, 25, 12, 7), (31, 31, 1, 1), (3, 0, 1, 32), (5, 6, 21, 19)],
    (20, 31): [(0, 0, 20, 31), (11, 2, 9, 29), (0, 30, 20, 1), (7, 7, 2, 3), (1, 1, 18, 29), (0, 0, 1, 1)],
    (96, 70): [(0, 0, 96, 70), (10, 3, 33, 34), (95, 69, 1, 1), (0, 5, 96, 11), (60, 10, 32, 32), (2, 2, 80, 60)],
}


@pytest.mark.parametrize("size", BOXES)
def test_crops_and_flips(size):
    image, boxes = noise(6, *size), torch.tensor(BOXES[size]).float()
    flip = torch.tensor([False, True] * 3)
    ours = pixels.crop(image, boxes, flip, 32)
    for number, box in enumerate(BOXES[size]):
        theirs = torchvision_crop(image[number], box, 32)
        close(ours[number], reference.horizontal_flip(theirs) if flip[number] else theirs)


def test_a_crop_of_96_from_96_pixels():
    """The size that SimCLR on STL-10 has: rounded coordinates must not be seen there either."""
    image, module = noise(64, 96, 96), Views(**SETTINGS | {"side": 96, "kernel": 9})
    plan = module.plan(draws_for(module, 64), 96, 96)
    ours = pixels.crop(image, plan.box, torch.zeros(64, dtype=torch.bool), 96)
    for number in range(64):
        close(ours[number], torchvision_crop(image[number], plan.box[number], 96))


def test_both_ways_to_crop_are_one_where_nothing_shrinks():
    image, boxes, flip = noise(), torch.tensor(BOXES[32, 32]).float(), torch.tensor([True, False] * 3)
    close(pixels.enlarge(image, boxes, flip, 32), pixels.resize(image, boxes, flip, 32))


@pytest.mark.parametrize("change", range(3))
@pytest.mark.parametrize("factors", [[0.0, 0.2, 0.9, 1.0, 1.3, 1.8], [5.0, 1.8, 1.0, 0.5, 0.1, 0.0]])
def test_brightness_contrast_and_saturation(change, factors):
    every = torch.ones(6, 3)
    every[:, change] = torch.tensor(factors)
    order = torch.stack([torch.randperm(3, generator=torch.Generator().manual_seed(row)) for row in range(6)])
    image = noise()
    for place in range(3):  # two of the three leave the image alone
        pixels.blend_(image, pixels.blend_weights(every, order)[:, place])
    for number, factor in enumerate(factors):
        close(image[number], COLOURS[change](noise()[number], factor))


def test_loss_of_colour_and_no_change():
    image = noise()
    weights = torch.tensor([pixels.TO_GREY, pixels.KEEP] * 3)
    pixels.blend_(image, weights)
    close(image[::2], reference.rgb_to_grayscale(noise()[::2], num_output_channels=3))
    assert torch.equal(image[1::2], noise()[1::2])


@pytest.mark.parametrize("turns", [[0.0, 0.5, -0.5, 0.2, -0.2, 0.01], [1 / 6, -1 / 6, 1 / 3, -1 / 3, 0.49, -0.07]])
def test_hue(turns):
    image = noise()
    corners = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1],
                            [0.5, 0.5, 0.2], [0.2, 0.5, 0.5], [0.5, 0.2, 0.5], [0.3, 0.3, 0.3 + 1e-7]])  # fmt: skip
    image[:, :, 0, :12] = corners.T
    before = image.clone()
    pixels.turn_hue_(image, torch.tensor(turns))
    for number, turn in enumerate(turns):
        close(image[number], reference.adjust_hue(before[number], turn))


@pytest.mark.parametrize(("height", "width", "kernel"), [(32, 32, 5), (32, 20, 9), (5, 9, 9), (7, 7, 1)])
def test_blur_up_to_the_borders(height, width, kernel):
    image, sigma = noise(6, height, width), torch.tensor([0.1, 0.3, 1.0, 2.0, 50.0, 0.0])
    ours = pixels.blur(image, sigma, kernel)
    for number in range(5):
        close(ours[number], reference.gaussian_blur(image[number], [kernel, kernel], [sigma[number].item()] * 2))
    assert torch.equal(ours[5], image[5])


def by_torchvision(image, plan, number, module):
    """One sample's view, step by step."""
    view = torchvision_crop(image, plan.box[number], module.side)
    view = reference.horizontal_flip(view) if plan.flip[number] else view
    for change, amount in changes(plan, number):
        view = change(view, amount)
    greyed, blurred = plan.finish[number].tolist()
    view = reference.rgb_to_grayscale(view, num_output_channels=3) if greyed else view
    return reference.gaussian_blur(view, [module.kernel] * 2, [plan.sigma[number].item()] * 2) if blurred else view


def changes(plan, number):
    """A sample's colour changes in their order, read from its plan."""
    found, (*steps, turned) = [], plan.colour[number].tolist()
    for place, weights in enumerate(plan.blends[number, :6].tolist()):
        if place == 3 and turned:
            found.append((COLOURS[3], plan.turn[number].item()))
        if steps[place]:
            own, grey, mean = weights
            change = 2 if grey else 1 if mean else 0
            assert own == pytest.approx(1 - grey - mean) or change == 0
            found.append((COLOURS[change], own))
    return found


@pytest.mark.parametrize("size", [(32, 32), (50, 41)])
def test_whole_views_step_by_step(size):
    module, image = Views(**SETTINGS), (noise(48, *size) * 255).to(torch.uint8)
    plan = module.plan(draws_for(module, 48), *size)
    ours = module(image, draws_for(module, 48))
    assert ours.dtype == torch.float32
    for number in range(48):
        close(ours[number], by_torchvision(image[number] / 255, plan, number, module))
    close(module(image / 255, draws_for(module, 48)), ours)


def test_every_order_of_the_four_changes_is_as_likely():
    module = Views(**SETTINGS | {"jitter": 1.0})
    plan = module.plan(draws_for(module, 12_000), 32, 32)
    orders = Counter(tuple(change.__name__ for change, _ in changes(plan, number)) for number in range(12_000))
    assert len(orders) == 24
    assert all(len(order) == 4 for order in orders)
    assert sum((count - 500) ** 2 / 500 for count in orders.values()) < 60  # chi squared, 23 degrees of freedom


def test_the_order_is_seen():
    """Brighter and then more contrast is not the same as the other way round."""
    module = Views(**SETTINGS | {"jitter": 1.0, "grey": 0.0, "blur": 0.0, "flip": 0.0})
    draws = draws_for(module, 1).repeat(24, 1)
    draws[:, -8:-4] = torch.rand(24, 4, generator=torch.Generator().manual_seed(1))  # order and place of the hue
    assert len(module(noise(1).expand(24, -1, -1, -1), draws).flatten(1).unique(dim=0)) > 12


@pytest.mark.parametrize("size", [(32, 32), (40, 25)])
def test_crops_follow_torchvisions_law(size):
    module = Views(**SETTINGS)
    ours = module.plan(draws_for(module, 4000), *size).box
    law = [noise(1, *size), [0.08, 1], [3 / 4, 4 / 3]]
    theirs = torch.tensor([RandomResizedCrop.get_params(*law) for _ in range(4000)])
    assert torch.equal(ours, ours.round())
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor(size)).all()
    for column in range(4):
        shares = torch.linspace(0.1, 0.9, 9)
        assert_close(ours[:, column].quantile(shares), theirs[:, column].float().quantile(shares), rtol=0, atol=1.01)
    assert_close(ours.mean(0), theirs.float().mean(0), rtol=0, atol=0.8)


@pytest.mark.parametrize(("size", "aspect", "box"), [
    ((10, 200), (0.75, 4 / 3), (0, 93, 10, 13)),
    ((200, 10), (0.75, 4 / 3), (93, 0, 13, 10)),
    ((30, 30), (1.2, 1.3), (2, 0, 25, 30)),
])  # fmt: skip
def test_where_no_try_fits_the_largest_crop_in_the_middle_is_taken(size, aspect, box):
    module = Views(**SETTINGS | {"area": (1.0, 1.0), "aspect": aspect})
    assert (module.plan(draws_for(module, 50), *size).box == torch.tensor(box)).all()
    assert RandomResizedCrop.get_params(noise(1, *size), [1, 1], list(aspect)) == box


def test_where_no_try_fits_and_the_whole_image_would_it_is_taken():
    module = Views(**SETTINGS | {"area": (1.0, 1.0), "aspect": (0.5, 2.0)})
    boxes = module.plan(draws_for(module, 200), 30, 40).box
    assert (boxes == torch.tensor([0, 0, 30, 40])).all(1).float().mean() > 0.6  # those that fit are a pixel smaller
    assert (boxes - torch.tensor([0, 0, 30, 40])).abs().max() <= 1


def test_probabilities_and_ranges():
    module = Views(**SETTINGS)
    plan = module.plan(draws_for(module, 8000), 32, 32)
    greyed, blurred = plan.finish.float().mean(0)
    shares = [plan.flip.float().mean(), plan.colour[:, -1].float().mean(), greyed, blurred]
    assert_close(torch.stack(shares), torch.tensor([0.5, 0.8, 0.2, 0.5]), rtol=0, atol=0.03)
    sigma, turn = plan.sigma[plan.finish[:, 1]], plan.turn[plan.colour[:, -1]]
    assert 0.1 <= sigma.min() < 0.11 < 1.99 < sigma.max() <= 2
    assert -0.2 <= turn.min() < -0.19 < 0.19 < turn.max() <= 0.2
    own = plan.blends[:, :6, 0][plan.colour[:, :6]]
    assert 0.2 <= own.min() < 0.21 < 1.79 < own.max() <= 1.8
    assert plan.colour[:, :6].sum(1).eq(3 * plan.colour[:, 6]).all()


def test_a_view_depends_on_its_image_and_numbers_alone():
    module, image = Views(**SETTINGS), noise(40)
    draws = draws_for(module, 40)
    state = torch.get_rng_state()
    whole = module(image, draws)
    some = torch.tensor([33, 2, 17, 5])
    close(module(image[some], draws[some]), whole[some])
    close(module(image[7:8], draws[7:8]), whole[7:8])
    assert torch.equal(torch.get_rng_state(), state)
    assert module(image[:0], draws[:0]).shape == (0, 3, 32, 32)
    assert not module.training or torch.equal(module.eval()(image, draws), whole)


def test_all_through_every_step_is_the_same(monkeypatch):
    """What a GPU does: nobody is sorted out, and steps not taken have weights that change nothing."""
    module, image = Views(**SETTINGS), noise(40)
    expected = module(image, draws_for(module, 40))
    monkeypatch.setattr(views, "alike", lambda taken, _: [(torch.arange(len(taken)), [True] * taken.shape[1])])
    close(module(image, draws_for(module, 40)), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_and_computes_the_same():
    module, image = Views(**SETTINGS), noise(40)
    index = torch.arange(40)
    expected = module(image, uniform(0, 0, index, module.slots))
    image, index, module = image.cuda(), index.cuda(), module.cuda()
    try:
        torch.cuda.set_sync_debug_mode("error")  # nothing waits for the GPU
        draws = uniform(0, 0, index, module.slots)
        found = module(image, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(draws.cpu(), uniform(0, 0, index.cpu(), module.slots))
    assert_close(found.cpu(), expected, rtol=0, atol=2e-5)


def test_autocast_leaves_pixels_alone():
    module, image = Views(**SETTINGS), noise(12, 40, 40)
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(image, draws_for(module, 12))
    assert torch.equal(inside, module(image, draws_for(module, 12)))


def test_everything_switched_off_is_a_plain_resize():
    off = {"flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "area": (1.0, 1.0), "aspect": (1.0, 1.0)}
    module = Views(**SETTINGS | off)
    close(module(noise(), draws_for(module, 6)), noise())


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"flip": 1.5}, r"flip=1\.5 must be a probability"),
    ({"blur": -0.1}, r"blur=-0\.1 must be a probability"),
    ({"area": (0.0, 1.0)}, r"area=\[0\.0, 1\.0\] must be two numbers above 0"),
    ({"area": (0.5, 1.5)}, r"area=\[0\.5, 1\.5\]: a crop cannot be larger than the image"),
    ({"aspect": (2.0, 1.0)}, r"aspect=\[2\.0, 1\.0\] must be two numbers above 0, the lower one first"),
    ({"sigma": (0.1,)}, r"sigma=\[0\.1\] must be two numbers"),
    ({"contrast": -1.0}, r"contrast=-1\.0 must be 0 or more\."),
    ({"hue": 0.6}, r"hue=0\.6 must be 0 or more, and at most 0\.5"),
    ({"kernel": 4}, r"kernel=4 must be an odd number, less than twice side=32"),
    ({"kernel": 65}, r"kernel=65 must be an odd number"),
    ({"side": 0}, r"side=0 must be 1 or more"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Views(**SETTINGS | changes)
