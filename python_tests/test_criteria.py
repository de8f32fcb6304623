"""Criteria 1-3 of the paper and Usage: values, properties, nasty and bad inputs. Processes: test_distributed.py."""

import math

import pytest
import torch

import cases
from vqdm_cuda import reference
from vqdm_cuda.criteria import Usage, criterion_triple, perplexity, quantization_error, utilization

F64 = torch.float64


def counts(*values: int) -> torch.Tensor:
    return torch.tensor(values)


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_quantization_error_is_the_mean_of_reference_distances(dtype):
    z, e = cases.features(200, 5, dtype), cases.features(30, 5, dtype)
    error = quantization_error(z, e)
    assert error.dtype == cases.out_dtype(dtype)
    cases.assert_close(error, reference.nearest_code(z, e)[0].double().mean(), cases.tolerance(dtype, 5))


def test_quantization_error_is_per_feature_not_per_number():
    assert quantization_error(torch.ones(7, 3), torch.zeros(2, 3)) == 3


def test_quantization_error_gradient():
    z, e = cases.features(8, 2).requires_grad_(), cases.features(3, 2).requires_grad_()
    grad_z, grad_e = torch.autograd.grad(quantization_error(z, e), (z, e))
    chosen = reference.nearest_code(z, e)[1]
    slope = 2 / 8 * (z - e[chosen]).detach()
    cases.assert_close(grad_z, slope, cases.tolerance(F64, 2))
    cases.assert_close(grad_e, torch.zeros(3, 2).double().index_add(0, chosen, -slope), cases.tolerance(F64, 8))


@pytest.mark.parametrize(
    ("values", "U", "C"),
    [
        ((5, 5, 5, 5), 1.0, 4.0),
        ((9, 0, 0, 0), 0.25, 1.0),
        ((1, 1, 0, 0), 0.5, 2.0),
        ((0, 0, 0, 0), 0.0, 0.0),
        ((3, 1), 1.0, 4 / 3**0.75),
        ((10**15, 10**15), 1.0, 2.0),
    ],
)
def test_utilization_and_perplexity(values, U, C):
    assert utilization(counts(*values)) == U
    assert float(perplexity(counts(*values))) == pytest.approx(C, rel=1e-15 * len(values) + 4e-16)


def test_leading_dimensions():
    table = torch.randint(0, 5, (3, 2, 7))
    for function in (utilization, perplexity):
        assert function(table).shape == (3, 2)
        assert function(table)[1, 1] == function(table[1, 1])


def test_criterion_triple_is_the_three_together():
    z, e = cases.features(300, 4), cases.features(40, 4)
    error, used, effective = criterion_triple(z, e)
    table = torch.bincount(reference.nearest_code(z, e)[1], minlength=40)
    assert torch.equal(error, quantization_error(z, e))
    assert used == utilization(table) == (table > 0).double().mean()
    p = table[table > 0] / 300
    assert float(effective) == pytest.approx(math.exp(-float((p.double() * p.double().log()).sum())), rel=1e-6)


def test_prototype_study():
    """Fig. 3 of the paper, features and codes uniform in the same unit disk, N = 10000, K = 400: root of E near 0.05,
    all codes used, perplexity near 340 (its run: .0512, .995, 338)."""

    def disk(n: int) -> torch.Tensor:
        radius, angle = torch.rand(n, dtype=F64).sqrt(), 2 * math.pi * torch.rand(n, dtype=F64)
        return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)

    error, used, effective = criterion_triple(disk(10_000), disk(400))
    assert 0.045 < error.sqrt() < 0.056
    assert used > 0.98
    assert 325 < effective < 355


# --- properties -----------------------------------------------------------------------------------------------------


def test_perplexity_is_between_one_and_the_number_used():
    for _ in range(50):
        table = torch.randint(0, 4, (12,))
        if table.sum():
            assert 1 - 1e-12 <= perplexity(table) <= (table > 0).sum() + 1e-12


def test_permutation_changes_nothing():
    table = torch.randint(0, 100, (50,))
    shuffled = table[torch.randperm(50)]
    assert utilization(shuffled) == utilization(table)
    assert float(perplexity(shuffled)) == pytest.approx(float(perplexity(table)), rel=1e-13)


# --- Usage ----------------------------------------------------------------------------------------------------------


def test_usage_accumulates():
    usage = Usage(5)
    assert usage.counts.tolist() == [0] * 5
    assert (usage.utilization(), usage.perplexity()) == (0.0, 0.0)
    usage.update(torch.tensor([[0, 1], [1, 4]]))
    usage.update([torch.tensor([4]), torch.tensor([[[4, 4]]]), torch.zeros(0, dtype=torch.int64)])
    assert usage.counts.dtype == torch.int64
    assert usage.counts.tolist() == [1, 2, 0, 0, 4]
    assert usage.utilization() == 0.6
    assert usage.perplexity() == float(perplexity(usage.counts))
    usage.reset()
    assert usage.counts.tolist() == [0] * 5


def test_usage_alone_reduces_to_a_copy():
    usage = Usage(3)
    usage.update(torch.tensor([0, 0, 2]))
    total = usage.reduce()
    assert total.counts.tolist() == [2, 0, 1]
    total.update(torch.tensor([1]))
    assert usage.counts.tolist() == [2, 0, 1]


def test_counts_handed_out_are_not_changed_by_an_update():
    usage = Usage(2)
    before = usage.counts
    usage.update(torch.tensor([1]))
    assert before.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (torch.tensor([0, 3]), ValueError, r"Usage.update: expected indices in \[0, 3\), got values from 0 to 3"),
        ([torch.tensor([0]), torch.tensor([-1])], ValueError, r"Usage.update: expected indices in \[0, 3\)"),
        (torch.tensor([0.0]), TypeError, "Usage.update: expected indices of dtype int64, got torch.float32"),
        ([0, 1], TypeError, "Usage.update: expected indices to be a tensor, got int"),
    ],
)
def test_usage_refuses_whole_updates(indices, error, message):
    usage = Usage(3)
    with pytest.raises(error, match=message):
        usage.update(indices)
    assert usage.counts.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError)])
def test_usage_of_a_bad_size(size, error):
    with pytest.raises(error, match="Usage: expected codebook_size"):
        Usage(size)


# --- bad ------------------------------------------------------------------------------------------------------------

BAD = {
    "no codes": (lambda: utilization(torch.zeros(0).long()), ValueError, "utilization: expected counts [..., K] with"),
    "scalar": (lambda: perplexity(torch.tensor(3)), ValueError, "perplexity: expected counts [..., K] with K >= 1"),
    "floats": (
        lambda: perplexity(torch.ones(3)),
        TypeError,
        "perplexity: expected counts of an integer dtype, got torch",
    ),
    "bools": (lambda: utilization(torch.ones(3) > 0), TypeError, "utilization: expected counts of an integer dtype"),
    "heads": (
        lambda: criterion_triple(torch.zeros(2, 4, 3), torch.zeros(5, 3)),
        ValueError,
        "criterion_triple: expected z [N, d] and e [K, d], got [2, 4, 3] and [5, 3]",
    ),
}


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad(bad, fake):
    cases.assert_raises(bad, fake=fake)
