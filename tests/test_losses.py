"""The mean softmax loss: value and gradient against loops and a dense target, its memory, and what it refuses."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_modules.nn.losses import mean_softmax_loss


def tagged(images, words, dtype=torch.float32, seed=0, scale=3.0):
    """Logits, tags and offsets; images without tags and tags that stand twice are among them."""
    random = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 7, (images,), generator=random)
    counts[images // 2] = 0
    tags = torch.randint(0, words, (int(counts.sum()),), generator=random)
    tags[: int(counts[0])] = 1
    logits = scale * torch.randn(images, words, generator=random, dtype=torch.float64)
    return logits.to(dtype), tags, F.pad(counts.cumsum(0), (1, 0))


def dense(logits, tags, offsets):
    """The same through a dense target of probabilities."""
    counts = offsets.diff()
    image = torch.repeat_interleave(torch.arange(len(logits)), counts)
    target = torch.zeros_like(logits).index_put_((image, tags), (1 / counts.to(logits.dtype))[image], accumulate=True)
    return F.cross_entropy(logits, target, reduction="none")


def gradient(loss, logits, tags, offsets, weights, **options):
    leaf = logits.clone().requires_grad_()
    (loss(leaf * 1.0, tags, offsets, **options) * weights).sum().backward()
    return leaf.grad


@pytest.mark.parametrize("seed", range(5))
def test_value_by_hand(seed):
    logits, tags, offsets = tagged(6, 5, seed=seed)
    losses = mean_softmax_loss(logits, tags, offsets)
    for row in range(6):
        own = tags[offsets[row] : offsets[row + 1]].tolist()
        total = sum(math.exp(score) for score in logits[row].tolist())
        expected = [math.log(total) - logits[row, tag].item() for tag in own]
        assert losses[row].item() == pytest.approx(sum(expected) / max(1, len(own)), abs=1e-5)
    assert (offsets.diff() == 0).any()
    assert losses[offsets.diff() == 0].eq(0).all()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("shape", [(9, 4), (1, 2), (70, 30_000)])
def test_value_and_gradient_are_those_of_the_dense_formulation(shape, dtype, tolerance, overwrite):
    logits, tags, offsets = tagged(*shape, dtype)
    weights = torch.rand(len(logits), dtype=dtype)
    assert_close(mean_softmax_loss(logits, tags, offsets), dense(logits, tags, offsets), rtol=0, atol=10 * tolerance)
    ours = gradient(mean_softmax_loss, logits, tags, offsets, weights, overwrite=overwrite)
    assert_close(ours, gradient(dense, logits, tags, offsets, weights), rtol=0, atol=tolerance)
    assert ours[offsets.diff() == 0].eq(0).all()


@pytest.mark.parametrize("overwrite", [False, True])
def test_bfloat16_gradient_is_the_float32_one_rounded_twice_at_most(overwrite):
    logits, tags, offsets = tagged(40, 300, torch.bfloat16)
    weights = torch.rand(40)
    ours = gradient(mean_softmax_loss, logits, tags, offsets, weights, overwrite=overwrite)
    assert ours.dtype == torch.bfloat16
    assert_close(ours.float(), gradient(dense, logits.float(), tags, offsets, weights), rtol=2**-7, atol=1e-9)


def test_bfloat16_keeps_the_gradient_of_an_image_that_is_nearly_learned():
    logits = torch.tensor([[7.0, 0.0, 0.0]], dtype=torch.bfloat16)
    data = (logits, torch.tensor([0]), torch.tensor([0, 1]), torch.ones(1))
    exact = gradient(dense, logits.float(), *data[1:])
    assert exact[0, 0].item() == pytest.approx(-0.00182, abs=1e-5)
    assert_close(gradient(mean_softmax_loss, *data).float(), exact, rtol=2**-7, atol=0)


def test_scores_far_apart_neither_overflow_nor_vanish():
    logits = torch.tensor([[3e4, 0.0, -3e4], [200.0, 0.0, 1.0]])
    data = (logits, torch.tensor([2, 1]), torch.tensor([0, 1, 2]))
    assert_close(mean_softmax_loss(*data), torch.tensor([6e4, 200.0]))
    assert_close(gradient(mean_softmax_loss, *data, torch.ones(2)), gradient(dense, *data, torch.ones(2)))


def test_a_batch_without_any_tag_has_no_loss_and_no_gradient():
    logits = torch.randn(3, 4).requires_grad_()
    losses = mean_softmax_loss(logits, torch.tensor([], dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    losses.sum().backward()
    assert losses.eq(0).all()
    assert logits.grad.eq(0).all()


def test_autocast_trains_the_layer_before_it():
    torch.manual_seed(0)
    layer, features = nn.Linear(8, 20), torch.randn(12, 8)
    _, tags, offsets = tagged(12, 20)
    with torch.autocast("cpu", torch.bfloat16):
        losses = mean_softmax_loss(layer(features), tags, offsets, overwrite=True)
    losses.mean().backward()
    ours = layer.weight.grad.clone()
    layer.zero_grad()
    dense(layer(features), tags, offsets).mean().backward()
    assert losses.dtype == torch.float32
    assert_close(ours, layer.weight.grad, rtol=0.02, atol=1e-3)


def test_logits_are_left_alone_unless_they_may_be_overwritten():
    logits, tags, offsets = tagged(5, 7)
    layer = nn.Linear(7, 7)
    scores = layer(logits)
    before = scores.detach().clone()
    mean_softmax_loss(scores, tags, offsets).sum().backward()
    assert torch.equal(scores, before)
    with torch.no_grad():
        mean_softmax_loss(scores, tags, offsets, overwrite=True)
    assert torch.equal(scores, before), "without a gradient there is nothing to write"
    scores = layer(logits)
    mean_softmax_loss(scores, tags, offsets, overwrite=True).sum().backward()
    assert not torch.equal(scores, before)


def test_overwriting_what_another_node_needs_is_refused_by_autograd():
    logits, tags, offsets = tagged(5, 7)
    scores = logits.requires_grad_() * 2.0
    other = (scores * scores).sum()
    total = mean_softmax_loss(scores, tags, offsets, overwrite=True).sum() + other
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
    with pytest.raises(ValueError, match="would destroy a leaf tensor"):
        mean_softmax_loss(logits, tags, offsets, overwrite=True)


class Allocations(TorchDispatchMode):
    """Counts the memory of at least `least` bytes that operations hand out."""

    def __init__(self, least, *known):
        super().__init__()
        self.least, self.storages = least, {tensor.untyped_storage()._cdata: tensor for tensor in known}
        self.fresh = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.storages and storage.nbytes() >= self.least:
                self.storages[storage._cdata] = tensor  # keeps it, so that its address is not used again
                self.fresh += 1
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("overwrite", "buffers"), [(True, 0), (False, 1)])
def test_nothing_of_the_size_of_the_logits_is_made_but_one_buffer(dtype, overwrite, buffers):
    logits, tags, offsets = tagged(400, 4000, dtype)
    scores = logits.requires_grad_().view(400, 4000)
    with Allocations(logits.nbytes // 2, scores) as made:
        mean_softmax_loss(scores, tags, offsets, overwrite=overwrite).mean().backward()
    assert made.fresh == buffers
    with Allocations(logits.nbytes // 2, scores) as made, torch.no_grad():
        mean_softmax_loss(scores, tags, offsets)
    assert made.fresh == 0


def test_second_derivatives_and_second_gradients_are_refused():
    logits, tags, offsets = tagged(5, 7)
    losses = mean_softmax_loss(logits.requires_grad_(), tags, offsets).sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(losses, logits, create_graph=True)
    losses = mean_softmax_loss(logits, tags, offsets).sum()
    losses.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="goes backward once"):
        losses.backward()


@pytest.mark.parametrize(
    ("tags", "offsets", "sentence"),
    [
        ([0, -1], [0, 1, 2], r"tag id -1 \(-1 is a tag outside the vocabulary\) cannot be learned: ids are 0\.\.3"),
        ([0, 4], [0, 1, 2], r"tag id 4 cannot be learned"),
        ([0, 1], [0, 1, 3], r"offsets must rise from 0 to the number of tags, 2: \[0, 1, 3\]"),
        ([0, 1], [1, 1, 2], r"offsets must rise"),
        ([0, 1], [0, 3, 2], r"offsets must rise"),
    ],
)
def test_tags_that_do_not_fit_are_refused(tags, offsets, sentence):
    with pytest.raises(ValueError, match=sentence):
        mean_softmax_loss(torch.zeros(2, 4), torch.tensor(tags), torch.tensor(offsets))
