"""NT-Xent: against loops, autograd and two libraries; in blocks, in bfloat16, at low temperatures, on two processes."""

import math
import os
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_modules.nn.gather import gather
from lightning_modules.nn.nt_xent import Negatives, check_settings, nt_xent

TEMPERATURES = [0.05, 0.1, 0.5, 2.0]


def embeddings(images=9, dtype=torch.float64, spread=0.7, width=16):
    """Two views of images of three kinds, as half-trained networks see them."""
    random = torch.Generator().manual_seed(images)
    kinds = torch.randn(3, width, generator=random)[torch.randint(0, 3, (images,), generator=random)]
    middle = 1.5 * kinds + spread * torch.randn(images, width, generator=random)
    return [(middle + 0.3 * torch.randn(images, width, generator=random)).to(dtype).requires_grad_() for _ in range(2)]


def by_cross_entropy(first, second, temperature):
    """The definition, left to autograd: the partner's place is the right class among all views but one's own."""
    views = F.normalize(torch.cat([first, second]), dim=1)
    logits = (views @ views.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(views)).roll(len(first)))


def gradients(loss, *arguments, **options):
    """Value, and the gradient of the two views one above the other."""
    first, second = (each.detach().clone().requires_grad_() for each in arguments[:2])
    value = loss(first, second, *arguments[2:], **options)
    return value.detach(), torch.cat(torch.autograd.grad(value, [first, second]))


def off(ours, theirs):
    """The length of the difference of two gradients as a share of their own."""
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_value_by_hand(temperature):
    first, second = embeddings(4)
    views = [view.tolist() for view in (*first.detach(), *second.detach())]

    def alike(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)) / temperature

    total = 0.0
    for place, view in enumerate(views):
        others = [alike(view, other) for number, other in enumerate(views) if number != place]
        total -= alike(view, views[(place + 4) % 8]) - math.log(sum(map(math.exp, others)))
    assert nt_xent(first, second, temperature).item() == pytest.approx(total / 8, rel=1e-12)


@pytest.mark.parametrize("images", [2, 3, 40])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_value_and_gradient_are_autograds(images, temperature):
    pair = embeddings(images)
    value, gradient = gradients(nt_xent, *pair, temperature)
    expected, theirs = gradients(by_cross_entropy, *pair, temperature)
    assert_close(value, expected, rtol=1e-12, atol=1e-12)
    assert_close(gradient, theirs, rtol=1e-8, atol=1e-12)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature), pair) if images == 3 else True


def library(name):
    """The loss of one of two other libraries, if it is installed."""
    os.environ["LIGHTLY_DID_VERSION_CHECK"] = "True"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "lightly":
            loss = pytest.importorskip("lightly.loss").NTXentLoss
            return lambda a, b, temperature: loss(temperature)(a, b)
        loss = pytest.importorskip("pytorch_metric_learning.losses").NTXentLoss
    labels = lambda views: torch.arange(len(views)) % (len(views) // 2)  # noqa: E731
    return lambda a, b, t: loss(t)(torch.cat([a, b]), labels(torch.cat([a, b])))


@pytest.mark.parametrize("name", ["lightly", "pytorch_metric_learning"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equal_to_other_libraries(name, temperature):
    pair = embeddings(24)
    value, gradient = gradients(nt_xent, *pair, temperature)
    expected, theirs = gradients(library(name), *pair, temperature)
    assert_close(value, expected, rtol=1e-10, atol=1e-12)
    assert off(gradient, theirs) < 1e-9


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_float32_is_as_exact_as_float32_can_be(temperature):
    pair = embeddings(150, torch.float32)
    value, gradient = gradients(nt_xent, *pair, temperature)
    expected, theirs = gradients(nt_xent, *(each.double() for each in pair), temperature)
    assert value.dtype == gradient.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert off(gradient, theirs) < 1e-5


@pytest.mark.parametrize("images", [64, 300])
@pytest.mark.parametrize("spread", [0.3, 0.7, 3.0])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_bfloat16_is_off_by_what_is_stated(images, spread, temperature):
    pair = embeddings(images, torch.float32, spread, width=128)
    value, gradient = gradients(nt_xent, *pair, temperature, precision="bfloat16")
    expected, theirs = gradients(nt_xent, *pair, temperature)
    assert value.item() == pytest.approx(expected.item(), rel=1e-3)
    assert 1e-5 < off(gradient, theirs) < 1e-2


@pytest.mark.parametrize("size", [1, 4, 7, 13, 100])
@pytest.mark.parametrize("room", [0, 500, 2**20])
def test_the_blocks_do_not_show(monkeypatch, size, room):
    pair = embeddings(13)
    value, gradient = gradients(by_cross_entropy, *pair, 0.2)
    prepare = Negatives.__init__

    def small(self, *arguments, keep):
        prepare(self, *arguments, keep)
        self.size, self.room = size, room

    monkeypatch.setattr(Negatives, "__init__", small)
    found = gradients(nt_xent, *pair, 0.2)
    assert_close(found, (value, gradient), rtol=1e-9, atol=1e-12)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that comes to be."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **options or {})
        tensors = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *tensors])
        return result


def test_memory_grows_with_the_batch_and_not_with_its_square():
    pair, largest = embeddings(1500, torch.float32), Largest()
    with largest:
        nt_xent(*pair, 0.5).backward()
    assert largest.elements == 512 * 512


def test_without_gradients_nothing_is_kept_and_none_is_computed(monkeypatch):
    pair, kept = embeddings(), []
    expected = nt_xent(*pair, 0.2).item()
    monkeypatch.setattr(Negatives, "pull", None)
    sums = Negatives.sums
    monkeypatch.setattr(Negatives, "sums", lambda self: (sums(self), kept.append(self.kept))[0])
    with torch.no_grad():
        assert nt_xent(*pair, 0.2).item() == expected
    assert kept == [{}]


@pytest.mark.parametrize("temperature", [0.024, 0.01, 1 / 700])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_low_temperatures(temperature, precision):
    """exp(1 / T) leaves float32 behind; the answer must not."""
    pair = embeddings(30, torch.float32)
    value, gradient = gradients(nt_xent, *pair, temperature, precision=precision)
    expected, theirs = gradients(by_cross_entropy, *(each.double() for each in pair), temperature)
    assert value.dtype == gradient.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert off(gradient, theirs) < 1e-6


def test_views_that_are_all_alike_or_opposite():
    for first, second in ((torch.ones(5, 3), torch.ones(5, 3)), (torch.ones(5, 3), -torch.ones(5, 3))):
        for temperature in (0.03, 0.5):
            expected = by_cross_entropy(first.double(), second.double(), temperature).item()
            value, gradient = gradients(nt_xent, first, second, temperature)
            assert value.item() == pytest.approx(expected, rel=1e-5)
            assert gradient.isfinite().all()


def test_nearly_solved_batches_keep_their_gradient():
    """1 − p is lost in float32 once p rounds to 1; the loss and its gradient are not."""
    views = torch.eye(8, dtype=torch.float32) + 1e-3
    noisy = views + 0.05 * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    value, gradient = gradients(nt_xent, views, noisy, 0.05)
    expected, theirs = gradients(nt_xent, views.double(), noisy.double(), 0.05)
    assert 0 < expected < 1e-6
    assert value.item() == pytest.approx(expected.item(), rel=1e-3)
    assert off(gradient, theirs) < 1e-3


def test_autocast_and_half_precision_embeddings():
    pair = [each.detach().bfloat16() for each in embeddings(20)]
    expected, theirs = gradients(nt_xent, *(each.float() for each in pair), 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = gradients(nt_xent, *pair, 0.2)
    assert value.dtype == torch.float32
    assert value == expected
    assert off(gradient.float(), theirs) < 1e-2  # rounded to the embeddings' own type


def test_a_multiple_of_the_loss_and_no_second_derivative():
    pair = embeddings()
    _, once = gradients(nt_xent, *pair, 0.2)
    _, thrice = gradients(lambda *given: 3 * nt_xent(*given), *pair, 0.2)
    assert_close(thrice, 3 * once)
    with pytest.raises(RuntimeError, match="nt_xent has no second derivative"):
        torch.autograd.grad(nt_xent(*pair, 0.2), pair, create_graph=True)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_hidden(broken, precision):
    """The engine stops at a loss that is not finite, and says so."""
    first, second = (each.detach() for each in embeddings(5, torch.float32))
    first[2, 1] = broken
    assert nt_xent(first, second, 0.2, precision).isnan()


@pytest.mark.parametrize(("arguments", "sentence"), [
    ((0.0, "float32"), r"temperature=0\.0 must be 1/700 or more"),
    ((-0.5, "float32"), r"temperature=-0\.5 must be"),
    ((0.001, "float32"), r"temperature=0\.001 must be"),
    ((math.nan, "float32"), r"temperature=nan must be"),
    ((math.inf, "float32"), r"temperature=inf must be"),
    ((0.5, "float16"), r"precision='float16' is not one of: float32, bfloat16"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(arguments, sentence):
    temperature, precision = arguments
    with pytest.raises(ValueError, match=sentence):
        check_settings(temperature, precision)
    if precision == "float32":
        with pytest.raises(ValueError, match=sentence):
            nt_xent(*embeddings(), temperature)


def test_batches_that_make_no_sense_are_refused():
    first, second = embeddings(4)
    with pytest.raises(ValueError, match="a batch of one image has no others to tell it from"):
        nt_xent(first[:1], second[:1], 0.5)


class Small(nn.Module):
    """Normalises each image by itself: unlike with BatchNorm, an embedding does not depend on its batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 6))

    def forward(self, images):
        return self.layers(images)


def photos():
    return torch.randn(2, 6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def with_gathered_keys(first, second, temperature):
    """The plain formulation on several processes: own anchors, everybody's keys, gradients through the gathering."""
    own = torch.cat([F.normalize(each, dim=1) for each in (first, second)])
    keys = gather(own)
    places = dist.get_rank() * len(own) + torch.arange(len(own))
    logits = own @ keys.T / temperature
    logits = logits.masked_fill(torch.arange(len(keys)) == places[:, None], -torch.inf)
    return F.cross_entropy(logits, places.roll(len(first)))


def one_of_two(number, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    torch.set_num_threads(1)
    found = {}
    for name, loss in (("ours", nt_xent), ("gathered", with_gathered_keys)):
        net = Small().double()
        value = loss(*map(net, photos()[:, 3 * number : 3 * number + 3]), 0.3)
        value.backward()
        for parameter in net.parameters():  # as DDP does
            dist.all_reduce(parameter.grad)
        found[name] = value.detach(), [parameter.grad / 2 for parameter in net.parameters()]
    found["one each"] = nt_xent(*embeddings(2)[0].detach()[[number, number]][:, None], 0.3)
    found["gathered already"] = nt_xent(*embeddings(3 + number), 0.3, gathered=True).detach()
    with pytest.raises(ValueError, match="the processes have batches of 2, 3"):
        nt_xent(*(each[: 2 + number] for each in embeddings()), 0.3)
    torch.save(found, f"{folder}/{number}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    two = [torch.load(tmp_path / f"{number}.pt") for number in range(2)]
    net = Small().double()
    value = nt_xent(*map(net, photos()), 0.3)
    value.backward()
    for found in two:
        assert_close(found["ours"][0], value.detach(), rtol=1e-12, atol=0)
        for name in ("ours", "gathered"):
            for gradient, parameter in zip(found[name][1], net.parameters(), strict=True):
                assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-13)
    for number, found in enumerate(two):
        assert found["gathered already"] == nt_xent(*embeddings(3 + number), 0.3)
    assert two[0]["one each"] == two[1]["one each"] > 0
