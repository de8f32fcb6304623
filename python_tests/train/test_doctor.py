"""vqdm_train.doctor: facts of this machine, and the judgement on made-up ones."""

import json

import numpy as np
import pytest
import torch

from vqdm_cuda import __version__
from vqdm_train.doctor import diagnose, find_problems, render, runs_on

_PACKAGES = ("torch", "numpy", "safetensors", "scikit-image", "scikit-learn", "pillow", "matplotlib")


def facts(**changes):
    """A machine where all is well; `build` and `versions` changes are merged into theirs."""
    sound = {
        "versions": {
            "python": "3.11.2",
            "vqdm_cuda": "0.1.0",
            **dict.fromkeys(_PACKAGES, "9.9"),
            "torch": "2.13.0+cu130",
        },
        "platform": "Linux",
        "build": {
            "version": "0.1.0",
            "compiler": "GNU 12.2.0",
            "torch_headers": "2.13.0",
            "cuda_archs": "80-real,86-real,89-real,90a-real,100",
            "cpu_features": ["avx2", "fma", "avx512"],
            "cpu_kernel": "avx512",
            "cuda_library": "_C_cuda.so",
        },
        "build_error": None,
        "torch_cuda": "13.0",
        "driver": True,
        "gpus": [{"name": "A GPU", "capability": [9, 0], "memory_gib": 80}],
        "threads": 8,
        "photos_missing": [],
    }
    for key, value in changes.items():
        sound[key] = sound[key] | value if key in ("build", "versions") and value is not None else value
    return sound


# --- values -----------------------------------------------------------------------------------------------------------


def test_this_machine():
    diagnosis = diagnose()
    assert json.loads(json.dumps(diagnosis)) == diagnosis
    assert diagnosis["versions"]["vqdm_cuda"] == __version__
    assert diagnosis["versions"]["torch"] == torch.__version__
    assert diagnosis["versions"]["numpy"] == np.__version__
    assert diagnosis["build"]["cpu_kernel"] in ("avx512vnni", "avx512", "avx2", "portable")
    assert diagnosis["runs"]["cpu"].startswith(diagnosis["build"]["cpu_kernel"])
    assert diagnosis["torch_cuda"] == torch.version.cuda
    assert diagnosis["photos_missing"] == []
    text = render(diagnosis)
    for word in (__version__, torch.__version__, "runs on cpu", "runs on cuda"):
        assert word in text


def test_a_sound_machine_has_no_problems():
    assert find_problems(facts()) == []
    cpu_only = facts(torch_cuda=None, driver=False, gpus=[], build={"cuda_library": None, "cuda_archs": ""})
    assert find_problems(cpu_only) == []
    no_gpu_here = facts(driver=False, gpus=[])
    assert find_problems(no_gpu_here) == []


@pytest.mark.parametrize(
    ("changes", "problem", "cure"),
    [
        ({"versions": {"torch": "2.9.1"}}, "torch 2.9.1 is older than 2.10", 'pip install --upgrade "torch>=2.10"'),
        ({"versions": {"pillow": None}}, "not installed: pillow", "pip install pillow"),
        ({"build": None, "build_error": "no _C"}, "the compiled library does not load: no _C", "--no-build-isolation"),
        ({"build": {"version": "0.0.9"}}, "the library is of version 0.0.9, the package of 0.1.0", "--force-reinstall"),
        ({"build": {"cpu_kernel": "portable"}}, "has AVX2, but the slower portable kernels run", "newer compiler"),
        ({"build": {"cuda_library": None}}, "torch has CUDA 13.0, but vqdm_cuda was built without it", "nvcc on PATH"),
        (
            {"gpus": [{"name": "Old", "capability": [7, 5], "memory_gib": 16}]},
            "Old has capability 7.5, but CUDA was built for 80-real 86-real 89-real 90a-real 100",
            "CUDAARCHS=75 pip install",
        ),
        ({"gpus": []}, "torch sees no GPU", "nvidia-smi"),
        ({"torch_cuda": None, "gpus": []}, "this torch has no CUDA", "install a CUDA build of torch"),
        ({"photos_missing": ["coffee.png"]}, "builtin:photos lacks coffee.png", "scikit-image"),
    ],
)
def test_each_problem_has_its_cure(changes, problem, cure):
    (found,) = find_problems(facts(**changes))
    assert problem in found["problem"]
    assert cure in found["cure"]
    text = render(facts(**changes) | {"runs": {}, "problems": [found]})
    assert f"problem: {found['problem']}\n   cure: {found['cure']}" in text


@pytest.mark.parametrize(
    ("capability", "arch", "runs"),
    [
        ((8, 0), "80-real", True),
        ((8, 6), "80-real", True),  # machine code runs on later minor versions
        ((8, 0), "86-real", False),
        ((9, 0), "89-real", False),
        ((9, 0), "90a-real", True),
        ((10, 0), "90a", False),  # neither machine code nor PTX with an a runs elsewhere
        ((9, 1), "90a", False),
        ((12, 0), "100", True),  # PTX
        ((12, 0), "100-virtual", True),
        ((12, 0), "100-real", False),
        ((9, 0), "100", False),
        ((10, 3), "100f", True),
        ((12, 0), "100f", False),
        ((12, 1), "121-real", True),
        ((8, 0), "native", True),
    ],
)
def test_which_code_runs_on_which_gpu(capability, arch, runs):
    assert runs_on(capability, arch) is runs


def test_unknown_architectures_are_refused():
    with pytest.raises(
        ValueError, match="runs_on: expected an architecture such as 80, 90a-real or 100-virtual, got 'volta'"
    ):
        runs_on((9, 0), "volta")
