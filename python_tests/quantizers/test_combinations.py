"""Every quantizer inside every structure: what is allowed trains and decodes to the bit, what is not says why.

A quantizer that is missing from the tables below fails the first test.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from vqdm_cuda.quantizers import (
    QUANTIZERS,
    EMAQuantizer,
    FiniteScalarQuantizer,
    IndexBackpropQuantizer,
    LinearQuantizer,
    LookupFreeQuantizer,
    MultiHeadQuantizer,
    MultiScaleQuantizer,
    NormalizedQuantizer,
    OnlineClusteringQuantizer,
    Quantizer,
    ResidualQuantizer,
    SinkhornQuantizer,
    VectorQuantizer,
    WassersteinQuantizer,
)
from vqdm_cuda.quantizers.structure import Structure

Build = Callable[[], Quantizer]
K, D = 16, 3

# One line for each kind that stands alone.
PLAIN: dict[str, Build] = {
    "vector": lambda: VectorQuantizer(K, D, gradient="rotation"),
    "ema": lambda: EMAQuantizer(K, D, revive_below=1.0),
    "online": lambda: OnlineClusteringQuantizer(K, D),
    "linear": lambda: LinearQuantizer(K, D, table_dim=5),
    "normalized": lambda: NormalizedQuantizer(K, D, gradient="rotation"),
    "wasserstein": lambda: WassersteinQuantizer(K, D, queue_size=50),
    "sinkhorn": lambda: SinkhornQuantizer(K, D),
    "finite_scalar": lambda: FiniteScalarQuantizer([4, 2, 2]),
    "lookup_free": lambda: LookupFreeQuantizer(D, temperature=1.0),
    "index_backprop": lambda: IndexBackpropQuantizer(K, D),
}
# One line for each structure.
STRUCTURES: dict[str, Callable[[Quantizer], Quantizer]] = {
    "multi_head": lambda inner: MultiHeadQuantizer(inner, 2),
    "residual": lambda inner: ResidualQuantizer(inner, 3),
    "multi_scale": lambda inner: MultiScaleQuantizer(inner, (1, 2, 4), num_phi=None),
}
# By structure and inner quantizer: the error.
REFUSED: dict[tuple[str, str], tuple[type[Exception], str]] = {
    **{
        (outer, inner): (TypeError, "to quantise each vector on its own, since .*, got (Multi|Residual)")
        for outer in STRUCTURES
        for inner in STRUCTURES
    },
    **{
        (outer, inner): (ValueError, why)
        for outer in ("residual", "multi_scale")
        for inner, why in {
            "normalized": "with codes of any length, since .*, got NormalizedQuantizer",
            "finite_scalar": "with codes that can take the scale .*, got FiniteScalarQuantizer",
            "lookup_free": "with codes that can take the scale .*, got LookupFreeQuantizer",
            "index_backprop": "to pass its gradient through the chosen codes, .*, got an IndexBackpropQuantizer",
            "cross entropy": "loss_form 'l2' or 'l1', .*, got 'ce'",
            "Sinkhorn at evaluation": "without sinkhorn_at_evaluation",
            "late start": "start_step 0, .*, got 3",
        }.items()
    },
}
# Inner quantizers that their options alone make unfit for some structure.
OPTIONS: dict[str, Build] = {
    "cross entropy": lambda: SinkhornQuantizer(K, D, loss_form="ce"),
    "Sinkhorn at evaluation": lambda: SinkhornQuantizer(K, D, sinkhorn_at_evaluation=True),
    "late start": lambda: SinkhornQuantizer(K, D, start_step=3),
}
INNER: dict[str, Build] = PLAIN | {name: lambda n=name: STRUCTURES[n](PLAIN["vector"]()) for name in STRUCTURES}

ALLOWED = [(outer, inner) for outer in ("", *STRUCTURES) for inner in INNER if (outer, inner) not in REFUSED]


def test_the_tables_hold_every_kind():
    assert PLAIN.keys() | STRUCTURES.keys() == QUANTIZERS.keys()
    assert all(type(PLAIN[kind]()) is QUANTIZERS[kind] for kind in PLAIN)
    assert {kind for kind, quantizer in QUANTIZERS.items() if issubclass(quantizer, Structure)} == STRUCTURES.keys()


def build(outer: str, inner: str) -> Quantizer:
    torch.manual_seed(0)
    quantizer = (INNER | OPTIONS)[inner]()
    return STRUCTURES[outer](quantizer) if outer else quantizer


@pytest.mark.parametrize(("outer", "inner"), ALLOWED)
def test_what_is_allowed_trains_and_decodes_its_indices_to_the_bit(outer: str, inner: str) -> None:
    q = build(outer, inner)
    groups = q.parameter_groups(lr=0.1, codebook_lr=0.1)
    optimizer = torch.optim.SGD(groups) if groups else None
    for _ in range(2):
        z = torch.randn(3, q.code_dim, 4, 4, requires_grad=True)
        q.zero_grad()
        (z_q, _, loss), terms = q(z, return_terms=True)
        (z_q.square().mean() + loss).backward()
        assert z_q.shape == z.shape
        assert z.grad is not None
        assert z.grad.isfinite().all()
        assert z.grad.any()
        torch.testing.assert_close(sum(terms.values(), torch.zeros(())), loss.detach(), rtol=1e-6, atol=0)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in q.parameters())
        if optimizer is not None:
            optimizer.step()

    z = torch.randn(3, q.code_dim, 4, 4)
    quantized, tokens = q.eval()(z), q.encode(z)
    assert all(map(torch.equal, as_list(quantized.indices), as_list(tokens)))
    assert torch.equal(q.decode(tokens), quantized.z_q)
    one_by_one = [as_list(q.encode(image)) for image in z.split(1)]
    assert all(map(torch.equal, map(torch.cat, zip(*one_by_one, strict=True)), as_list(tokens)))


@pytest.mark.parametrize("kind", PLAIN)
def test_torchs_default_device_changes_nothing(kind: str) -> None:
    """A user may have made it a GPU; here it is a device that holds no numbers."""
    z, results = torch.randn(20, D), []
    for device in ("cpu", "meta"):
        q = build("", kind)
        with torch.device(device):
            z_q, indices, loss = q(z)
            results.append((z_q, indices, loss, q.encode(z), q.decode(indices), q.codebook, q.state_dict()))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def as_list(indices: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [indices] if isinstance(indices, Tensor) else list(indices)


@pytest.mark.parametrize(("outer", "inner"), REFUSED)
def test_what_is_refused_says_why(outer: str, inner: str) -> None:
    error, message = REFUSED[outer, inner]
    with pytest.raises(error, match=f"{QUANTIZERS[outer].__name__}: expected inner {message}"):
        build(outer, inner)
