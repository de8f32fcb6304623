"""A few small calls of every CUDA kernel, for `compute-sanitizer --tool memcheck python -m bench.sanitized`."""

import os

import torch

from vqdm_cuda import code_sums, gaussian_w2, moments, nearest_code, sinkhorn, sqrtm

CASES = [(300, 500, 16), (129, 1000, 33), (40, 70, 100)]


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    for path in ("tensor_core", "portable"):
        os.environ["VQDM_CUDA_KERNEL"] = path
        for N, K, d in CASES:
            z, e, bias = (torch.randn(*shape, generator=generator).cuda() for shape in ((N, d), (K, d), (K,)))
            _, indices = nearest_code(z, e, bias)
            nearest_code(z.bfloat16(), e.repeat(3, 1))  # ties: the lists of open rows fill
            nearest_code(z.expand(3, N, d), e + torch.arange(3, device="cuda")[:, None, None])
            code_sums(z, indices, K)
            code_sums(z, indices * 0, K)  # one code with several chunks
            for cost in ("euclidean", "sqeuclidean"):
                sinkhorn(z.bfloat16(), e, cost=cost, num_iters=2, floor=1e-8)
                sinkhorn(z.expand(3, N, d), e, cost=cost, num_iters=1, seed=1)
                sinkhorn(z, e.double(), cost=cost, num_iters=1, seed=1)
    for d in (5, 33, 130):  # a part of a warp, a block, and blocks of columns
        x = torch.randn(2, 200, d, generator=generator).cuda()
        (mean1, cov1), (mean2, cov2) = (moments(part) for part in x)
        moments(x[0].double().T.contiguous().T)
        sqrtm(torch.stack([cov1, cov2, torch.nan * cov1]))
        gaussian_w2(mean1, cov1.requires_grad_(), mean2, torch.stack([cov2, 0 * cov2])).sum().backward()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
