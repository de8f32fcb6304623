"""The recipes of docs/optvq.md, run as they stand there, against the published formulas in float64.

The published recursion is written out in its own, linear form: exponentials of the whole matrix, sums with 1e-8 added.
No function of the library takes part in it.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cases
import vqdm_cuda
from vqdm_cuda import MultiHeadQuantizer, SinkhornQuantizer

PAGE = Path(__file__).parents[2] / "docs" / "optvq.md"
HEADS = 4


def recipe(title: str) -> tuple[MultiHeadQuantizer, SinkhornQuantizer]:
    """What the code under that title makes, in float64 and with 256 codes in place of 16384: a problem for a test."""
    torch.manual_seed(0)
    text = PAGE.read_text()
    match = re.search(r"```python\n(.*?)```", text[text.index(f"\n## {title}\n") :], re.DOTALL)
    assert match
    code, count = re.subn("16384", "256", match.group(1))
    assert count == 1
    names: dict[str, Any] = dict(vars(vqdm_cuda))
    exec(code, names)
    quantizer = names["quantizer"].double().train()
    assert isinstance(quantizer.inner, SinkhornQuantizer)
    assert (quantizer.num_heads, quantizer.code_dim) == (HEADS, 256)
    return quantizer, quantizer.inner


def pieces(z: Tensor) -> Tensor:  # [B, 256, h, w] -> [B h w 4, 64]
    return z.permute(0, 2, 3, 1).reshape(-1, 256 // HEADS)


def features() -> Tensor:  # [2, 256, 8, 8], 512 pieces
    return cases.features(2 * 64, 256, offset=0.5).view(2, 8, 8, 256).permute(0, 3, 1, 2).contiguous().requires_grad_()


def published_indices(x: Tensor, e: Tensor, floor: float) -> Tensor:
    distance = (x[:, None] - e).norm(dim=-1)
    cost = (distance - distance.mean()) / (distance.std() + 1e-6)
    cost = cost - cost.min()
    Q = torch.exp(-10 * cost).T
    K, B = Q.shape
    Q = Q / (Q.sum() + floor)
    for _ in range(5):
        Q = Q / (Q.sum(1, keepdim=True) + floor) / K
        Q = Q / (Q.sum(0, keepdim=True) + floor) / B
    return (B * Q).T.argmax(1)


@pytest.mark.parametrize(("title", "floor"), [("As published", 1e-8), ("As recommended here", 0.0)])
def test_indices_loss_and_gradients_are_the_published_ones(title: str, floor: float) -> None:
    q, inner = recipe(title)
    z = features()
    z_q, indices, loss = q(z)
    assert inner.linear_map is not None
    x = pieces(z)
    e = inner.weight @ inner.linear_map.weight.T + inner.linear_map.bias
    expected = published_indices(x.detach(), e.detach(), floor)
    shape = (2, 8, 8, HEADS)
    assert torch.equal(
        indices, expected.view(shape).movedim(-1, 1) if title == "As published" else expected.view(shape)
    )
    chosen = e[expected]
    published = ((x - chosen.detach()) ** 2).mean() + 0.25 * ((chosen - x.detach()) ** 2).mean()
    cases.assert_close(loss, published, 1e-12)
    leaves = [z, inner.weight, inner.linear_map.weight, inner.linear_map.bias]
    got, wanted = (torch.autograd.grad(value, leaves, retain_graph=True) for value in (loss, published))
    for a, b in zip(got, wanted, strict=True):
        cases.assert_close(a, b, 1e-10)
    cases.assert_close(pieces(z_q), chosen, 1e-12)

    q.eval()
    nearest = (x[:, None] - e).norm(dim=-1).argmin(1)
    assert (nearest != expected).double().mean() > 0.2
    at_evaluation = expected if title == "As published" else nearest
    assert torch.equal(pieces(q(z).z_q), e[at_evaluation])
    tokens = q.encode(z)
    assert torch.equal((tokens.movedim(1, -1) if title == "As published" else tokens).flatten(), nearest)


def test_the_cross_entropy_has_the_published_gradients() -> None:
    """One term with both gradients, which is both of ours with weight 1."""
    _, inner = recipe("As recommended here")
    inner.loss_form, inner.commitment_weight, inner.codebook_weight = "ce", 1.0, 1.0
    x = pieces(features()).detach().requires_grad_()
    _, indices, loss = inner(x)
    published = F.cross_entropy(-(x[:, None] - inner.codebook).norm(dim=-1), indices)
    cases.assert_close(loss, 2 * published, 1e-12)
    leaves = [x, *inner.parameters()]
    for a, b in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(published, leaves), strict=True):
        cases.assert_close(a, b, 1e-10)
