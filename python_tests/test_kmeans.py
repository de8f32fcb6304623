"""kmeans: its start and steps against the definition, another library's inertia, and the same codes everywhere."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import cases
import gloo_ranks
from vqdm_cuda.criteria import quantization_error
from vqdm_cuda.kmeans import kmeans
from vqdm_cuda.ops.nearest_code import nearest_code
from vqdm_cuda.quantizers import LinearQuantizer, VectorQuantizer

F64 = torch.float64
# How many of 90 features each rank has: equal parts, unequal ones, none. Two ranks are a group among the four.
SPLITS: list[tuple[int, ...]] = [(45, 45), (89, 1), (0, 90), (20, 30, 15, 25), (0, 70, 0, 20)]


def some_features() -> Tensor:  # [90, 3]
    torch.manual_seed(0)
    return cases.features(90, 3, torch.float32, offset=2.0)


# values --------------------------------------------------------------------------------------------------------------


def test_the_second_code_is_drawn_by_squared_distance():
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    d2 = torch.cdist(features, features).square()
    expected = d2 / 4 / d2.sum(1, keepdim=True)  # of each ordered pair: the first evenly, the second by distance
    places = {tuple(row): i for i, row in enumerate(features.tolist())}  # the two equal ones are one place
    counts, num_draws = torch.zeros(4, 4), 1500
    for seed in range(num_draws):
        first, second = (places[tuple(row)] for row in kmeans(features, 2, num_iters=0, seed=seed).tolist())
        counts[first, second] += 1
    expected[3] += expected[0]  # as `places` has it
    expected[:, 3] += expected[:, 0]
    expected[0] = expected[:, 0] = 0
    error = (expected * (1 - expected) / num_draws).sqrt()
    assert (counts / num_draws - expected).abs().le(4 * error).all()
    assert counts[expected == 0].sum() == 0


def test_the_steps_are_those_of_lloyd():
    features = some_features().double()
    codes = kmeans(features, 7, num_iters=0, seed=3)
    assert all((features == code).all(1).any() for code in codes)
    for _ in range(10):
        indices = torch.cdist(features, codes).argmin(1)
        codes = torch.stack([features[indices == k].mean(0) if (indices == k).any() else codes[k] for k in range(7)])
    torch.testing.assert_close(kmeans(features, 7, seed=3), codes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_codes", [10, 64])
def test_digits_are_described_as_well_as_by_another_library(num_codes):
    from sklearn.cluster import KMeans
    from sklearn.datasets import load_digits

    features = torch.from_numpy(load_digits().data).float()
    ours, theirs = [], []
    for seed in range(3):
        ours.append(float(quantization_error(features, kmeans(features, num_codes, seed=seed))))
        peer = KMeans(num_codes, init="k-means++", n_init=1, max_iter=10, tol=0, random_state=seed)
        theirs.append(peer.fit(features.numpy()).inertia_ / len(features))
    assert sum(ours) <= 1.05 * sum(theirs), (ours, theirs)


def test_it_starts_a_codebook():
    features = some_features()
    q, table = VectorQuantizer(16, 3), LinearQuantizer(16, 2, table_dim=3)
    q.set_codes(kmeans(features, 16))
    table.set_codes(kmeans(features, 16))
    assert torch.equal(q.codebook, table.weight)
    assert quantization_error(features, q.codebook) < 0.2 * features.var(0).sum()


# properties ----------------------------------------------------------------------------------------------------------


def test_the_same_codes_for_any_number_of_threads_and_no_others_draws():
    features = torch.randn(40000, 2, generator=torch.Generator().manual_seed(0))
    threads, state, results = torch.get_num_threads(), torch.get_rng_state(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(kmeans(features, 20, num_iters=2))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(kmeans(features, 20, num_iters=2, seed=1), results[0])


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_types_and_strides(dtype):
    features = some_features().to(dtype)
    codes = kmeans(features, 8)
    assert codes.dtype == cases.out_dtype(dtype)
    assert codes.is_contiguous()
    assert torch.equal(kmeans(features.T.contiguous().T, 8), codes)
    assert torch.equal(kmeans(features.requires_grad_(), 8), codes)
    assert not codes.requires_grad


def work(rank: int, num_ranks: int) -> dict[str, Tensor]:
    groups = {2: dist.new_group([0, 1]), 4: dist.group.WORLD}
    out = {}
    for seed, split in enumerate(SPLITS):
        if rank < len(split):
            own = some_features().split(split)[rank]
            out[f"{seed}"] = kmeans(own, 12, seed=seed, group=groups[len(split)])
            with torch.device("meta"):  # stands for a GPU as torch's default
                out[f"{seed} half"] = kmeans(own.half(), 12, seed=seed, group=groups[len(split)])
    with pytest.raises(ValueError, match="at least num_codes = 91 features, got 90"):
        kmeans(own, 91, group=groups[4])
    return out


def test_ranks_have_the_codes_of_one_process(tmp_path: Path) -> None:
    features = some_features()
    ranks = gloo_ranks.run(work, 4, tmp_path)
    for seed, split in enumerate(SPLITS):
        for rank in ranks[: len(split)]:
            assert torch.equal(rank[f"{seed}"], kmeans(features, 12, seed=seed))
            assert torch.equal(rank[f"{seed} half"], kmeans(features.half(), 12, seed=seed))


# nasty ---------------------------------------------------------------------------------------------------------------


def test_as_many_codes_as_features_are_all_of_them():
    features = some_features()
    for codes in (kmeans(features, 90), kmeans(features, 90, num_iters=0)):
        assert torch.equal(nearest_code(features, codes)[0], torch.zeros(90))
    assert torch.equal(kmeans(features[:1], 1), features[:1])


def test_fewer_distinct_features_than_codes():
    features = torch.tensor([[1.0], [5.0], [9.0]]).repeat(20, 1)
    for seed in range(5):
        assert sorted(set(kmeans(features, 10, seed=seed).flatten().tolist())) == [1.0, 5.0, 9.0]
    assert torch.equal(kmeans(torch.ones(6, 2), 4), torch.ones(4, 2))


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_features_of_any_scale_and_far_from_zero(scale):
    features = some_features()
    torch.testing.assert_close(kmeans(scale * features, 8) / scale, kmeans(features, 8), rtol=1e-5, atol=0)
    far = features + 1e4
    assert quantization_error(far, kmeans(far, 8)) < 1.01 * quantization_error(features, kmeans(features, 8))


def test_a_feature_far_from_the_others_leaves_their_distances_in_sight():
    features = torch.cat([some_features(), torch.tensor([[1e9, 0.0, 0.0]])])
    codes = kmeans(features, 9, num_iters=0, seed=1)
    assert (codes[:, 0] > 1e8).sum() == 1
    assert codes.unique(dim=0).shape[0] == 9


# bad -----------------------------------------------------------------------------------------------------------------

GOOD = torch.zeros(5, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": [1.0]}, TypeError, "features to be a tensor, got list"),
        ({"features": GOOD.long()}, TypeError, "features of dtype float64, .*, got torch.int64"),
        ({"features": GOOD[0]}, ValueError, r"features \[N, d\] with d >= 1, got \[2\]"),
        ({"features": GOOD[:, :0]}, ValueError, r"features \[N, d\] with d >= 1, got \[5, 0\]"),
        ({"features": GOOD[:2]}, ValueError, "at least num_codes = 3 features, got 2"),
        ({"features": GOOD / 0}, ValueError, "features with finite squared distances, got NaN, Inf or too large"),
        ({"features": GOOD + 1e20}, ValueError, "features with finite squared distances, got NaN, Inf or too large"),
        ({"num_codes": 0}, ValueError, "num_codes of at least 1, got 0"),
        ({"num_codes": 3.0}, TypeError, "num_codes to be an int, got float"),
        ({"num_iters": -1}, ValueError, "num_iters of at least 0, got -1"),
        ({"seed": True}, TypeError, "seed to be an int, got bool"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=f"kmeans: expected {message}"):
        kmeans(**({"features": GOOD, "num_codes": 3} | arguments))
