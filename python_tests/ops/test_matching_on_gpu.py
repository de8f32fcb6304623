"""On a GPU: moments, sqrtm, gaussian_w2 and the loss made of them equal the CPU's, replay, and never wait."""

import pytest
import torch
from torch import Tensor

import cases
from vqdm_cuda import gaussian_w2, moments, sqrtm, wasserstein_loss

pytestmark = cases.NO_GPU
# Parts of a warp, whole matrices in a block, blocks of columns.
DIMENSIONS = [1, 3, 8, 16, 31, 32, 33, 64, 100, 128, 200, 256]


def rows(N: int, d: int) -> Tensor:
    return cases.features(N, d, torch.float32, offset=1.0)


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("options", [{}, {"target": "rate_distortion"}, {"normalize": "features", "squared": True}])
def test_loss_and_gradients_on_gpu_equal_those_on_cpu(d, options):
    z, e = rows(3000, d), rows(700, d) * 1.1
    results = []
    for device in ("cpu", "cuda"):
        leaves = [x.to(device).requires_grad_() for x in (z, e)]
        loss = wasserstein_loss(*leaves, **options)
        loss.backward()
        results.append([loss.detach().cpu(), *(torch.zeros(1) if x.grad is None else x.grad.cpu() for x in leaves)])
    for on_cpu, on_gpu in zip(*results, strict=True):
        cases.assert_close(on_gpu, on_cpu, 2e-4)  # the gradient's float32 product may be TF32


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("batch", [1, 10])
def test_batches_on_gpu_equal_those_on_cpu(d, batch):
    cov1, cov2 = cases.covariance(d, batch), cases.covariance(d, batch)
    mean = torch.randn(batch, d, dtype=torch.float64)
    leaves = [S.cuda().requires_grad_() for S in (cov1, cov2)]
    w2 = gaussian_w2(mean.cuda(), leaves[0], -mean.cuda(), leaves[1])
    w2.sum().backward()
    on_cpu = [S.requires_grad_() for S in (cov1, cov2)]
    expected = gaussian_w2(mean, on_cpu[0], -mean, on_cpu[1])
    expected.sum().backward()
    slack = 100 * cases.tolerance(torch.float64, d)
    cases.assert_close(w2.cpu(), expected, slack)
    for ours, theirs in zip(leaves, on_cpu, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        cases.assert_close(ours.grad.cpu(), theirs.grad, 100 * slack)
    cases.assert_close(sqrtm(cov1.detach().cuda()).cpu(), sqrtm(cov1.detach()), slack)


@pytest.mark.parametrize("d", [16, 64, 130])
@pytest.mark.parametrize("options", [{}, {"target": "rate_distortion"}, {"normalize": "codebook"}])
def test_host_never_waits_for_gpu(d, options):
    z, e = (x.cuda().requires_grad_() for x in (rows(500, d), rows(100, d)))
    wasserstein_loss(z, e, **options).backward()  # what a first call sets up may wait
    torch.cuda.synchronize()
    with cases.no_waiting_for_gpu():
        wasserstein_loss(z, e, **options).backward()
        mean, cov = moments(z)
        gaussian_w2(mean, cov, mean, sqrtm(cov))


@pytest.mark.parametrize("d", [8, 33, 130])
def test_cuda_graph_replays(d):
    z, e = rows(500, d).cuda(), rows(100, d).cuda()

    def call() -> tuple[Tensor, ...]:
        mean1, cov1 = moments(z)
        mean2, cov2 = moments(e)
        return cov1, sqrtm(cov1), gaussian_w2(mean1, cov1, mean2, cov2)

    cases.assert_graph_replays(call, z, e)
