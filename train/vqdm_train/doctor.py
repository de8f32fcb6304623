"""What is installed and built, what of it will run on this machine, and what to do where something will not.

`diagnose` gathers facts and judges them; it never raises for a broken installation, since that is what it is asked
about. `find_problems` is the judgement alone, a function of the facts.
"""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["diagnose", "find_problems", "render", "runs_on"]

_PACKAGES = ("torch", "numpy", "safetensors", "scikit-image", "scikit-learn", "pillow", "matplotlib")
_MIN_TORCH = (2, 10)
_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


def diagnose() -> dict[str, Any]:
    """Facts and problems, ready for JSON.

    Returns:
        versions     package -> version, None where it is not installed
        build        vqdm_cuda.build_info(); None where the compiled library does not load, and `build_error` says why
        torch_cuda   the CUDA version of torch, None for a CPU torch
        driver       whether an NVIDIA driver is loaded
        gpus         name, capability [major, minor] and memory in GiB of each GPU that torch sees
        threads      CPU threads of an operator
        photos_missing    the photographs of builtin:photos that are not there
        runs         backend -> what runs on it
        problems     a list of {"problem", "cure"}
    """
    facts: dict[str, Any] = {"versions": {"python": platform.python_version()}, "platform": platform.platform()}
    facts["versions"] |= {package: _version(package) for package in ("vqdm_cuda", *_PACKAGES)}
    facts |= _build_facts() | _torch_facts() | {"photos_missing": _missing_photos(facts["versions"])}
    if facts["build"] is not None:
        facts["versions"]["vqdm_cuda"] = facts.pop("imported")  # a checkout may be used without being installed
    return facts | {"runs": _what_runs(facts), "problems": find_problems(facts)}


def find_problems(facts: dict[str, Any]) -> list[dict[str, str]]:
    """What will not work, or not as well as it could, each with its cure."""
    found: list[tuple[str, str]] = []
    build, torch_version, cuda = facts["build"], facts["versions"]["torch"], facts["torch_cuda"]

    missing = [package for package in _PACKAGES if facts["versions"][package] is None]
    if missing:
        found.append((f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}"))
    if torch_version is not None and _numbers(torch_version) < _MIN_TORCH:
        found.append((f"torch {torch_version} is older than 2.10", 'pip install --upgrade "torch>=2.10"'))

    if build is None:
        found.append((f"the compiled library does not load: {facts['build_error']}", _REBUILD))
    else:
        found += _build_problems(facts, build)

    if facts["driver"] and cuda is None and torch_version is not None:
        found.append(
            (
                "an NVIDIA driver is here, but this torch has no CUDA, so everything runs on the CPU",
                f"install a CUDA build of torch (see pytorch.org), then {_REBUILD}",
            )
        )
    if facts["driver"] and cuda is not None and not facts["gpus"]:
        found.append(
            (
                f"torch has CUDA {cuda} and an NVIDIA driver is here, but torch sees no GPU",
                "see `nvidia-smi`: its CUDA version must be at least torch's, and CUDA_VISIBLE_DEVICES not hide it",
            )
        )
    if facts["photos_missing"]:
        found.append(
            (
                f"builtin:photos lacks {', '.join(facts['photos_missing'])}",
                "pip install --force-reinstall --no-deps scikit-image",
            )
        )
    return [{"problem": problem, "cure": cure} for problem, cure in found]


def runs_on(
    capability: tuple[int, int],  # of the GPU: (9, 0) for 9.0
    arch: str,  # as CMake writes it: 80, 86-real, 90a-real, 100-virtual
) -> bool:
    """Whether code built for `arch` runs on such a GPU.

    Machine code (`-real`, or no suffix) runs within its major version, from its minor version on; of an architecture
    with a letter on exactly that GPU (a) or its family (f). PTX (`-virtual`, or no suffix) runs on every later GPU,
    but with a letter it is bound in the same way. CMake's words (native, all, all-major) are taken on trust.
    """
    if arch in ("native", "all", "all-major"):
        return True
    match = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", arch)
    if match is None:
        raise ValueError(f"runs_on: expected an architecture such as 80, 90a-real or 100-virtual, got {arch!r}")
    built, letter, kind = (int(match[1]), int(match[2])), match[3], match[4]
    if letter == "a":
        return capability == built
    within_major = capability[0] == built[0] and capability[1] >= built[1]
    if letter == "f" or kind == "-real":
        return within_major
    return capability >= built


def render(diagnosis: dict[str, Any]) -> str:
    """The diagnosis for people: facts in lines, then problems, each with its cure below it."""
    build = diagnosis["build"] or {}
    rows = [(name, found or "not installed") for name, found in diagnosis["versions"].items()]
    rows.append(("platform", diagnosis["platform"]))
    if build:
        rows.append(("built with", f"{build['compiler']}, headers of torch {build['torch_headers']}"))
        rows.append(("CPU features", " ".join(build["cpu_features"]) or "none beyond the baseline"))
        rows.append(("CUDA built for", " ".join(_archs(build)) or "nothing: no nvcc was there"))
    rows.append(("CUDA of torch", diagnosis["torch_cuda"] or "none"))
    rows += [
        ("GPU", f"{gpu['name']}, capability {gpu['capability'][0]}.{gpu['capability'][1]}, {gpu['memory_gib']} GiB")
        for gpu in diagnosis["gpus"]
    ]
    rows += [(f"runs on {backend}", what) for backend, what in diagnosis["runs"].items()]
    lines = [f"{name:<16}{value}" for name, value in rows]
    for item in diagnosis["problems"]:
        lines += ["", f"problem: {item['problem']}", f"   cure: {item['cure']}"]
    return "\n".join(lines if diagnosis["problems"] else [*lines, "", "no problems found"])


def _build_problems(facts: dict[str, Any], build: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    installed = facts["versions"]["vqdm_cuda"]
    if installed is not None and installed != build["version"]:
        found.append((f"the library is of version {build['version']}, the package of {installed}", _REBUILD))
    if "avx2" in build["cpu_features"] and build["cpu_kernel"] == "portable":
        found.append(
            ("the processor has AVX2, but the slower portable kernels run", f"with a newer compiler, {_REBUILD}")
        )
    if facts["torch_cuda"] is not None and build["cuda_library"] is None:
        found.append(
            (
                f"torch has CUDA {facts['torch_cuda']}, but vqdm_cuda was built without it: CUDA tensors are refused",
                f"with nvcc on PATH or CUDA_HOME set, {_REBUILD}",
            )
        )
    if build["cuda_library"] is not None:
        archs = _archs(build)
        for gpu in facts["gpus"]:
            major, minor = gpu["capability"]
            if not any(runs_on((major, minor), arch) for arch in archs):
                problem = f"{gpu['name']} has capability {major}.{minor}, but CUDA was built for {' '.join(archs)}"
                found.append((problem, f"CUDAARCHS={major}{minor} {_REBUILD}"))
    return found


def _what_runs(facts: dict[str, Any]) -> dict[str, str]:
    build = facts["build"]
    if build is None:
        return {"cpu": "nothing", "cuda": "nothing"}
    runs = {"cpu": f"{build['cpu_kernel']} kernels, {facts['threads']} threads"}
    usable = [
        gpu["name"] for gpu in facts["gpus"] if any(runs_on(tuple(gpu["capability"]), arch) for arch in _archs(build))
    ]
    if usable and build["cuda_library"] is not None:
        runs["cuda"] = f"CUDA kernels on {', '.join(usable)}"
    elif facts["torch_cuda"] is None:
        runs["cuda"] = "nothing: this torch has no CUDA"
    elif not facts["gpus"]:
        runs["cuda"] = "nothing: torch sees no GPU"
    else:
        runs["cuda"] = "nothing: no kernels for this GPU"
    return runs


def _build_facts() -> dict[str, Any]:
    try:
        from vqdm_cuda import __version__, build_info
    except (ImportError, OSError) as error:  # OSError: a library of another torch, whose symbols are missing
        return {"build": None, "build_error": " ".join(str(error).split())}
    return {"build": build_info(), "build_error": None, "imported": __version__}


def _torch_facts() -> dict[str, Any]:
    facts: dict[str, Any] = {"torch_cuda": None, "driver": _has_driver(), "gpus": [], "threads": os.cpu_count()}
    try:
        import torch
    except ImportError:
        return facts  # its missing version says so
    facts |= {"torch_cuda": torch.version.cuda, "threads": torch.get_num_threads()}
    if torch.version.cuda is not None and torch.cuda.is_available():
        for properties in map(torch.cuda.get_device_properties, range(torch.cuda.device_count())):
            gpu = {"name": properties.name, "capability": [properties.major, properties.minor]}
            facts["gpus"].append(gpu | {"memory_gib": round(properties.total_memory / 2**30)})
    return facts


def _has_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def _missing_photos(versions: dict[str, str | None]) -> list[str]:
    if any(versions[package] is None for package in _PACKAGES):
        return []  # the packages that are missing are named, and come first
    from vqdm_train.data.builtin import missing_photos

    return missing_photos()


def _archs(build: dict[str, Any]) -> list[str]:
    """["80-real", "100"] from "80-real,100"."""
    return [arch for arch in build["cuda_archs"].split(",") if arch]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """(2, 13) from "2.13.0+cpu"."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
