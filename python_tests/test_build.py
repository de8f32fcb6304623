"""The build: one version, libraries that need nothing but torch's stable interface, and an import that does no harm."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vqdm_cuda

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(vqdm_cuda.__file__).parent
LIBRARIES = sorted(PACKAGE.glob("_C*.so"))


def test_one_version() -> None:
    info = vqdm_cuda.build_info()
    assert info["version"] == vqdm_cuda.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", vqdm_cuda.__version__)
    assert info["cpu_kernel"] in {"portable", "avx2", "avx512", "avx512vnni"}


def test_every_source_file_is_in_the_build() -> None:
    listed = (ROOT / "CMakeLists.txt").read_text()
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cpp", ".cu"}]
    assert len(sources) >= 8
    for path in sources:
        assert str(path.relative_to(ROOT)) in listed, f"{path.name} is not built"


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_libraries_use_only_the_stable_interface(library: Path) -> None:
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True
    ).stdout.split()
    names = {name for name in symbols if name not in {"U", "w"}}
    # The C and C++ runtimes' symbols carry a version; what else is undefined is Python's or torch's, and of torch only
    # the C interface keeps from release to release. Which of it torch 2.10 has, TORCH_TARGET_VERSION sees to.
    unversioned = {name for name in names if "@" not in name}
    allowed = r"(aoti_torch_|torch_|Py|_Py|_ZNSt|_ITM_|__gmon_start__|__cudaInitModule)"
    assert {name for name in unversioned if not re.match(allowed, name)} == set()
    assert any(name.startswith("aoti_torch_") for name in names)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_libraries_name_no_folder_of_the_build_machine(library: Path) -> None:
    assert str(ROOT).encode() not in library.read_bytes()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_the_cuda_half_is_built_where_nvcc_is() -> None:
    if os.environ.get("VQDM_WITHOUT_CUDA"):
        pytest.skip("built without CUDA on purpose")
    info = vqdm_cuda.build_info()
    assert info["cuda_archs"]
    assert info["cuda_library"] is not None


def test_import_opens_no_socket_compiles_nothing_and_makes_no_cuda_context(tmp_path: Path) -> None:
    program = """
import socket, subprocess
def refuse(*args, **kwargs):
    raise AssertionError("import did what it must not")
socket.socket.connect = refuse
subprocess.Popen.__init__ = refuse
import vqdm_cuda, torch
assert not torch.cuda.is_initialized()
vqdm_cuda.nearest_code(torch.ones(2, 3), torch.ones(4, 3))
"""
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_memory_of_a_search_does_not_grow_with_n_times_k() -> None:
    """At most 32 MB + 16 (N + K) bytes beyond outputs and the packed codebook; a fresh process, so a clean peak."""
    program = """
import sys
from pathlib import Path
import torch
from vqdm_cuda import nearest_code
def status():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {l.split(":")[0]: int(l.split()[1]) * 1024 for l in lines if l.endswith(" kB")}
N, K, d = map(int, sys.argv[1:])
z, e = torch.randn(N, d), torch.randn(K, d)
nearest_code(z[:100], e[:100])
Path("/proc/self/clear_refs").write_text("5")
before = status()["VmRSS"]
nearest_code(z, e)
extra = status()["VmHWM"] - before
allowed = 32 * 2**20 + 16 * (N + K) + 4 * K * d + 12 * N
assert extra <= allowed, (extra, allowed)
"""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for shape in ((60000, 16384, 4), (2000, 100000, 16), (200000, 16, 8)):
        subprocess.run([sys.executable, "-c", program, *map(str, shape)], check=True, env=environment)
