"""Rows of all processes: what comes back to each, and what is refused; one process has nothing to gather."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.testing import assert_close

from lightning_modules.nn.gather import collect, gather, rank, ranks


def rows(count=6):
    return torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def loss_of(everyone, own):
    """Compares a process's own rows with everybody's, as a contrastive loss does."""
    return (own @ everyone.T).exp().mean()


def one_of_two(number, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    torch.set_num_threads(1)
    own = rows()[3 * number : 3 * number + 3].requires_grad_()
    everyone = gather(own)
    found = {"rank": (rank(), ranks()), "everyone": everyone.detach()}
    for name, loss in (("all", loss_of(everyone, everyone)), ("own", loss_of(everyone, own))):
        (found[name],) = torch.autograd.grad(loss, own, retain_graph=True)
    found["labels"] = collect(torch.tensor([number, 7]))
    found["transposed"] = gather(rows().T[:, 3 * number : 3 * number + 3].T)
    with pytest.raises(ValueError, match="the processes have batches of 2, 3: a loss that compares") as refusal:
        gather(rows()[: 2 + number])
    found["refused"] = str(refusal.value)
    torch.save(found, f"{folder}/{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(one_of_two, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


def test_everybodys_rows_rank_after_rank(two):
    for number, found in enumerate(two):
        assert found["rank"] == (number, 2)
        assert torch.equal(found["everyone"], rows())
        assert torch.equal(found["transposed"], rows())
        assert found["labels"].tolist() == [0, 7, 1, 7]


@pytest.mark.parametrize("kind", ["all", "own"])
def test_the_average_of_the_gradients_is_that_of_one_process(two, kind):
    """DDP divides by the number of processes what backward has summed over them."""
    whole = rows().requires_grad_()
    loss_of(whole, whole).backward()
    together = torch.cat([found[kind] for found in two]) / 2
    assert_close(together, whole.grad, rtol=1e-12, atol=1e-14)


def test_unequal_batches_are_refused_on_every_process(two):
    assert two[0]["refused"] == two[1]["refused"]


def test_one_process_keeps_what_it_has():
    own = rows().requires_grad_()
    assert gather(own) is own
    assert collect(own) is own
    assert (rank(), ranks()) == (0, 1)
