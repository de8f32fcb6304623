"""The arrows of the architecture: who may import or include whom. Read from the source, so nothing has to run."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Layers of vqdm_cuda, lowest first: a file imports from its own layer and those before it.
LAYERS = [
    {"_version", "_C", "_library"},
    {"ops", "distributed"},
    {"matching"},
    {"losses", "divergences", "criteria", "kmeans"},
    {"quantizers"},
    {"models"},
]
THIRD_PARTY = {"torch", "numpy", "safetensors"}


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports; `from a import b` gives a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrow"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", python_files("vqdm_cuda"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_imports_downwards_and_little_else(path: Path) -> None:
    parts = path.relative_to(ROOT / "vqdm_cuda").with_suffix("").parts
    for name in imports(path):
        top, *rest = name.split(".")
        assert top in THIRD_PARTY | {"vqdm_cuda"} or top in sys.stdlib_module_names, f"imports {name}"
        if top != "vqdm_cuda" or parts[0] == "__init__":
            continue
        if parts[0] == "reference":
            assert rest[0] == "reference", f"the specification leans on {name}"
            continue
        assert rest[0] != "reference", "no silent fallback to the reference"
        assert layer(rest[0]) <= layer(parts[0]), f"imports {name}, a layer above its own"


@pytest.mark.parametrize("path", python_files("train"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_trainer_uses_public_names_only(path: Path) -> None:
    import vqdm_cuda

    for name in imports(path):
        top, *rest = name.split(".")
        assert top not in {"bench", "python_tests"}
        if top == "vqdm_cuda" and rest:
            assert len(rest) == 1, f"{name} is not a public name"
            assert rest[0] in vqdm_cuda.__all__, f"{name} is not a public name"


def test_public_names_exist_once_and_sorted() -> None:
    import vqdm_cuda

    assert sorted(set(vqdm_cuda.__all__)) == sorted(vqdm_cuda.__all__)
    assert all(hasattr(vqdm_cuda, name) for name in vqdm_cuda.__all__)


@pytest.mark.parametrize("folder", ["cpu", "cuda"])
def test_kernels_are_torch_free(folder: str) -> None:
    files = [path for path in (ROOT / "csrc" / folder).iterdir() if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert files
    for path in files:
        for include in re.findall(r'#include\s+[<"]([^>"]+)[>"]', path.read_text()):
            assert not include.startswith(("torch", "ATen", "c10", "pybind11", "../")), f"{path.name}: {include}"


def test_cuda_kernels_know_the_device_by_the_thin_layer_alone() -> None:
    """So that all of them run on the host: see csrc/cuda/simt.cuh."""
    own = {path.name for path in (ROOT / "csrc/cuda").iterdir()}
    standard = {"algorithm", "cstddef", "cstdint", "limits", "math.h", "numeric", "vector"}
    for path in (ROOT / "csrc/cuda").iterdir():
        if path.name in {"simt.cuh", "stream.h", "sort.cuh"}:
            continue
        text = path.read_text()
        assert set(re.findall(r'#include\s+[<"]([^>"]+)[>"]', text)) <= own | standard, path.name
        for word in ("<<<", "threadIdx", "blockIdx", "__shared__", "__sync", "__shfl", "asm"):
            assert word not in text, f"{path.name}: {word}"


def test_only_csrc_ops_includes_torch_and_only_its_stable_headers() -> None:
    stable = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/")
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        for include in re.findall(r"#include\s+<(torch/[^>]+|ATen/[^>]+|c10/[^>]+)>", path.read_text()):
            assert path.parent.name == "ops", f"{path.name} includes {include}"
            assert include.startswith(stable), f"{path.name} includes {include}"


def test_unsafe_loaders_and_code_from_data_are_nowhere() -> None:
    modules = {"pickle", "marshal", "shelve", "dill", "joblib", "yaml"}
    calls = {"eval", "exec", "__import__", "torch.load", "torch.hub.load", "torch.export.load", "os.system"}
    audited = ROOT / "train/vqdm_train/losses/weights.py"  # reads published weights, and takes tensors alone
    for path in python_files("vqdm_cuda") + python_files("train") + python_files("bench"):
        assert not {name.split(".")[0] for name in imports(path)} & modules, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if path == audited and ast.unparse(node.func) == "torch.load":
                    assert options["weights_only"] == "True"
                else:
                    assert ast.unparse(node.func) not in calls, f"{path}: {ast.unparse(node.func)}"
                assert "shell" not in options, path
