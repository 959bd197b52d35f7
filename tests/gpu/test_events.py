"""Events of a partition on a CUDA device: the answers and gradients of the CPU, again and again."""

import pytest
import torch
from torch import Tensor, nn

from distill.head import places
from distill.head.chunked import recomputed
from distill.head.output_head import LinearHead
from distill.head.query import HeadQuery, Lookup, Partition
from logitstore.models.output_embedding import AfterEmbedding

pytestmark = pytest.mark.gpu

V, D, N, G, K = 4099, 64, 301, 1200, 40


def partition_of(r: int) -> Partition:
    """Events of one to a thousand tokens, and some of none; with shares if r > 0."""
    gen = torch.Generator().manual_seed(r)
    of_rV = (torch.rand(max(1, r), V - 3, generator=gen) ** 3 * (G + 1)).long() - 1
    if not r:
        return Partition(of_rV[0].int(), G)
    share_rV = torch.rand(r, V - 3, generator=gen)
    return Partition(of_rV, G, share_rV / share_rV.sum(0))


def answered(device: str, r: int, members: int) -> list[Tensor]:
    """Answers, then the gradients of hidden states and weights."""
    gen = torch.Generator().manual_seed(5)
    hidden = torch.randn(N, D, generator=gen).to(device).requires_grad_()
    linear = nn.Linear(D, V, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(V, D, generator=gen) * 3 / D**0.5)
    linear = linear.to(device)
    ids = torch.stack([torch.randperm(G, generator=gen)[:K] for _ in range(N)])
    ids[torch.rand(ids.shape, generator=gen) < 0.2] = -1
    labels = torch.randint(V, (N,), generator=gen)
    partition = partition_of(r).to(device)
    lookups = {
        "events": Lookup(ids.to(device), partition=partition),
        "cool": Lookup(ids.int().to(device), 0.7, True, partition),
    }
    head = LinearHead(linear, AfterEmbedding(None, None, None, None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "BLOCK_MEMBERS", members)
        patch.setattr(places, "BLOCK_MEMBERS_ON_GPU", members)
        answer = recomputed(head, hidden, HeadQuery(labels.to(device), lookups=lookups), 128)
        finite = [x.masked_fill(x == -torch.inf, 0) for x in answer.values()]
        grads = torch.autograd.grad(sum(x.sin().sum() for x in finite), [hidden, linear.weight])
    return [x.detach().cpu() for x in (*finite, *grads)]


@pytest.mark.parametrize("members", [2**12, 2**22])
@pytest.mark.parametrize("r", [0, 1, 4])
def test_events_on_the_device_are_those_of_the_cpu(device: str, r: int, members: int) -> None:
    for got, want in zip(answered(device, r, members), answered("cpu", r, 2**16), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("r", [0, 4])
def test_events_are_the_same_in_every_run(device: str, r: int) -> None:
    """Bit for bit: members are written in no order that could change."""
    for got, want in zip(answered(device, r, 2**14), answered(device, r, 2**14), strict=True):
        assert torch.equal(got, want)
