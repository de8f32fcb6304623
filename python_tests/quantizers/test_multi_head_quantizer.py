"""MultiHeadQuantizer: pieces of vectors, their order, layouts of indices, and what it refuses."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from vqdm_cuda.quantizers import (
    MultiHeadQuantizer,
    MultiScaleQuantizer,
    Quantizer,
    SinkhornQuantizer,
    VectorQuantizer,
    WassersteinQuantizer,
)

H, D, K = 3, 2, 16
INNER: dict[str, Any] = {
    "vector": lambda: VectorQuantizer(K, D, gradient="rotation"),
    "wasserstein": lambda: WassersteinQuantizer(K, D, queue_size=50),
    "sinkhorn": lambda: SinkhornQuantizer(K, D),
    "sinkhorn, ce": lambda: SinkhornQuantizer(K, D, loss_form="ce", start_step=1),
}
# Shape of z, of its indices, and of those with the heads first.
LAYOUTS = [
    ((2, H * D, 3, 5), (2, 3, 5, H), (2, H, 3, 5)),
    ((2, 7, H * D), (2, 7, H), (2, H, 7)),
    ((7, H * D), (7, H), (7, H)),
]


def quantizer(kind: str = "sinkhorn", **options: Any) -> MultiHeadQuantizer:
    torch.manual_seed(0)
    return MultiHeadQuantizer(INNER[kind](), H, **options)


def pieces(z: Tensor) -> Tensor:
    """[N H, d], by the definition: image, position, head."""
    rows = z.movedim(1, -1) if z.dim() == 4 else z
    return torch.stack([row[h * D : (h + 1) * D] for row in rows.reshape(-1, H * D) for h in range(H)])


# values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", INNER)
@pytest.mark.parametrize(("shape", "index_shape", "heads_first_shape"), LAYOUTS, ids=["image", "batch", "list"])
def test_it_is_the_inner_quantizer_of_all_pieces(shape, index_shape, heads_first_shape, kind, training):
    q = quantizer(kind).train(training)
    first = quantizer(kind, heads_first=True).train(training)
    inner = copy.deepcopy(q.inner)
    z = torch.randn(shape, requires_grad=True)
    (z_q, indices, loss), terms = q(z, return_terms=True)
    expected, expected_terms = inner(pieces(z), return_terms=True)
    assert z_q.shape == shape
    assert indices.shape == index_shape
    assert indices.dtype == torch.int64
    assert torch.equal(indices.flatten(), expected.indices)
    assert torch.equal(pieces(z_q), expected.z_q)
    assert torch.equal(loss, expected.loss)
    assert terms == expected_terms
    weights = torch.randn_like(z)
    got = torch.autograd.grad((z_q * weights).sum() + loss, z)[0]
    wanted = torch.autograd.grad((expected.z_q * pieces(weights)).sum() + expected.loss, z)[0]
    torch.testing.assert_close(got, wanted)

    tokens = q.encode(z)
    assert tokens.shape == index_shape
    if not training:
        assert torch.equal(tokens, indices)
        assert torch.equal(q.decode(tokens), z_q)
    other = first(z).indices
    assert other.shape == heads_first_shape
    assert torch.equal(other.movedim(1, -1) if len(shape) > 2 else other, indices)
    assert torch.equal(first.decode(first.encode(z)), q.decode(tokens))


def test_tokens_are_equal_to_the_bit_for_any_split():
    q, z = quantizer(), torch.randn(6, H * D, 4, 4)
    tokens = q.encode(z)
    assert torch.equal(torch.cat([q.encode(part) for part in z.split([1, 0, 5])]), tokens)
    assert torch.equal(q.encode(z.permute(0, 2, 3, 1).reshape(-1, H * D)).view(tokens.shape), tokens)
    assert torch.equal(q.encode(z.contiguous(memory_format=torch.channels_last)), tokens)


def test_narrow_types():
    q, z = quantizer().eval(), torch.randn(2, H * D, 4, 4).bfloat16()
    narrow, wide = q(z), q(z.float())
    assert narrow.z_q.dtype == torch.bfloat16
    assert torch.equal(narrow.indices, wide.indices)
    assert torch.equal(narrow.z_q, wide.z_q.bfloat16())
    assert q(torch.zeros(0, H * D, 4, 4)).indices.shape == (0, 4, 4, H)


def test_facts():
    q = quantizer(heads_first=True)
    assert (q.codebook_size, q.code_dim, q.codebook.shape) == (K, H * D, (K, D))
    assert q.codebook_parameters() == q.inner.codebook_parameters()
    assert q.latent_size is None
    assert q.config["inner"] == q.inner.config
    assert (q.config["num_heads"], q.config["heads_first"]) == (H, True)
    assert "num_heads=3" in repr(q)
    groups = q.parameter_groups(lr=1.0, codebook_lr=2.0)
    assert [len(group["params"]) for group in groups] == [3]


# bad -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inner", [lambda: MultiScaleQuantizer(VectorQuantizer(4, 2), (1, 2)), quantizer], ids=["scales", "heads"]
)
def test_inner_quantizers_of_more_than_a_vector_are_refused(inner):
    with pytest.raises(TypeError, match=r"expected inner to quantise each vector on its own, since .*, got Multi"):
        MultiHeadQuantizer(inner(), 2)
    inside: Quantizer = quantizer()
    with pytest.raises(TypeError, match=r"MultiScaleQuantizer: expected inner .*, got MultiHeadQuantizer"):
        MultiScaleQuantizer(inside, (1, 2))


def test_bad_numbers_of_heads():
    with pytest.raises(ValueError, match="num_heads of at least 1, got 0"):
        MultiHeadQuantizer(VectorQuantizer(4, 2), 0)
    with pytest.raises(TypeError, match="num_heads to be an int, got float"):
        MultiHeadQuantizer(VectorQuantizer(4, 2), 2.0)  # type: ignore[arg-type]


def test_bad_features_and_indices():
    q = quantizer()
    for call in (q, q.encode):
        with pytest.raises(ValueError, match=r"expected z \[B, 6, h, w\] .*, got \[2, 4, 3, 3\]"):
            call(torch.zeros(2, 4, 3, 3))
    for shape in ((2, 3, 5), (2, H, 3, 5), (H,), (1, 1, 1, 1, H)):
        with pytest.raises(ValueError, match=r"decode: expected indices \[B, h, w, 3\], \[B, n, 3\] or \[N, 3\], got"):
            q.decode(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"expected indices \[B, 3, h, w\], \[B, 3, n\] or \[N, 3\], got \[2, 4, 4, 3\]"
    ):
        quantizer(heads_first=True).decode(torch.zeros(2, 4, 4, H, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected indices from 0 to 15, got 16"):
        q.decode(torch.full((2, H), 16))
    with pytest.raises(TypeError, match="expected indices to be a tensor, got list"):
        q.decode([0])  # type: ignore[arg-type]
