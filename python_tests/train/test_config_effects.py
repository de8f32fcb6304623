"""Every key of the config does something: runs that differ in one key differ in what key_effects.py says.

What a run of two steps on one process cannot show of a key has a test of its own, marked with `observes`.
"""

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import vqdm_cuda
import wandb_stand_in
from key_effects import BASE, EFFECTS, PERCEPTUAL, SINKHORN
from tiny_run import ALONE, TINY, write_images
from vqdm_cuda import quantizers
from vqdm_cuda.models import checkpointing
from vqdm_train import distributed
from vqdm_train.cli import main
from vqdm_train.config import Config
from vqdm_train.data import CorruptDataError, stream
from vqdm_train.presets import demo
from vqdm_train.settings import apply_json, flatten, parse_settings
from vqdm_train.trainer import DivergedError, Trainer
from weight_files import write_dino, write_weights

OBSERVED: set[str] = set()  # keys with a test of their own


def observes(key: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    OBSERVED.add(key)
    return lambda test: test


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What settings name: folders of images, a table of codes, weights of other networks."""
    folder = tmp_path_factory.mktemp("files")
    images, broken = write_images(folder / "images", 4, 20), write_images(folder / "broken", 4, 20)
    (broken / "broken.png").write_bytes(b"not a picture")
    np.save(folder / "table.npy", np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32))
    return {
        "images": images,
        "broken": broken,
        "other": write_images(folder / "other", 4, 36),
        "table": folder / "table.npy",
        "alex": write_weights(folder / "alex.pth", "alex"),
        "alex2": write_weights(folder / "alex2.pth", "alex", seed=2),
        "vgg": write_weights(folder / "vgg.pth", "vgg"),
        "dino": write_dino(folder / "dino.pth"),
        "dino2": write_dino(folder / "dino2.pth", seed=1),
    }


def config_of(files: dict[str, Path], *settings: str) -> Config:
    words = [setting.format(**files) for setting in (*TINY, *BASE, *settings)]
    return apply_json(demo(), parse_settings(demo(), words))


# what a run leaves ----------------------------------------------------------------------------------------------------

Marks = dict[str, Any]
_TIMED = ("images_per_second", "data_wait", "data_wait_share", "peak_memory_gib")


def run(config: Config, out: Path) -> Marks:
    """All that a run leaves, but for times and the words of its config."""
    said, error, trainer = io.StringIO(), "", None
    with contextlib.redirect_stdout(said):
        try:
            trainer = Trainer(config, out, ALONE)
            trainer.run()
        except (CorruptDataError, DivergedError) as stopped:
            error = str(stopped)
    marks: Marks = {"error": error, "said": _without_times(said.getvalue().replace(str(out), ""))}
    if trainer is None or error:
        return marks
    state = trainer.state
    networks = [state.tokenizer] + ([state.adversary.state] if state.adversary is not None else [])
    tokens = state.ema.model.encode(trainer.samples)
    lines = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    return marks | {
        "weights": [(name, value) for network in networks for name, value in network.state_dict().items()],
        "average": list(state.ema.model.state_dict().items()),
        "tokens": [("", part) for part in (tokens if isinstance(tokens, list) else [tokens])],
        "samples": [path.read_bytes() for path in sorted((out / "samples").iterdir())],
        "stats": [{key: value for key, value in line.items() if key not in _TIMED} for line in lines],
        "files": sorted(str(path.relative_to(out)) for path in out.rglob("*")),
    }


def _without_times(text: str) -> str:
    return re.sub(r"(?m)^(step \d+/\d+  ).*$", r"\1", text)


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, tensors and their names included."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return bool(a == b)


@pytest.fixture(scope="module")
def without(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Marks]:
    """The marks of a run with a context and nothing else; each context runs once."""
    runs: dict[tuple[str, ...], Marks] = {}

    def marks(context: tuple[str, ...]) -> Marks:
        if context not in runs:
            runs[context] = run(config_of(files, *context), tmp_path_factory.mktemp("without") / "run")
        return runs[context]

    return marks


# the keys -------------------------------------------------------------------------------------------------------------


def test_every_key_has_its_test() -> None:
    assert not EFFECTS.keys() & OBSERVED
    assert EFFECTS.keys() | OBSERVED == flatten(Config()).keys()


@pytest.mark.parametrize("key", EFFECTS)
def test_the_key_changes_the_run(
    key: str, files: dict[str, Path], without: Callable[[tuple[str, ...]], Marks], tmp_path: Path
) -> None:
    effect = EFFECTS[key]
    before = config_of(files, *effect.context)
    now = config_of(files, *effect.context, f"{key}={effect.value}", *effect.also)
    changed = {name for name, value in flatten(now).items() if value != flatten(before)[name]}
    assert changed == {key, *(setting.partition("=")[0] for setting in effect.also)}
    marks = run(now, tmp_path / "run")
    expected = without(effect.context)
    assert effect.changes == "error" or marks["error"] == expected["error"] == ""
    assert not same(marks[effect.changes], expected[effect.changes])


@pytest.mark.parametrize("context", sorted({effect.context for effect in EFFECTS.values()}))
def test_the_same_config_leaves_the_same_marks(
    context: tuple[str, ...], files: dict[str, Path], without: Callable[[tuple[str, ...]], Marks], tmp_path: Path
) -> None:
    """Else the test above would pass whatever a key does."""
    marks, expected = run(config_of(files, *context), tmp_path / "run"), without(context)
    assert marks.keys() == expected.keys()
    for name, mark in marks.items():
        assert same(mark, expected[name]), name


# keys that say how, not what ------------------------------------------------------------------------------------------


@observes("data.workers")
def test_workers_are_the_threads_that_read(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    def pool(workers: int, **options: Any) -> ThreadPoolExecutor:
        started.append(workers)
        return ThreadPoolExecutor(workers, **options)

    monkeypatch.setattr(stream, "ThreadPoolExecutor", pool)
    for workers in (1, 3):
        run(config_of(files, f"data.workers={workers}"), tmp_path / str(workers))
    assert started == [1, 3]


@observes("compile")
def test_compile_names_what_torch_compiles(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    for parts in ("", "encoder", "encoder,decoder,discriminator,perceptual"):
        quoted = ",".join(f'"{part}"' for part in parts.split(",") if part)
        run(config_of(files, *PERCEPTUAL, "adversarial.weight=0.5", f"compile=[{quoted}]"), tmp_path / f"run {parts}")
    assert compiled == ["Encoder", "Encoder", "Decoder", "PatchDiscriminator", "LPIPS"]


@observes("checkpoint_activations")
def test_activations_are_computed_again_and_are_the_same(
    files: dict[str, Path],
    without: Callable[[tuple[str, ...]], Marks],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = ("model.dropout=0.5", "adversarial.weight=0.5")
    calls, checkpoint = [], checkpointing.checkpoint

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return checkpoint(*arguments, **options)

    monkeypatch.setattr(checkpointing, "checkpoint", counted)
    expected = without(context)
    assert not calls
    marks = run(config_of(files, *context, "checkpoint_activations=true"), tmp_path / "run")
    assert len(calls) > 10
    assert same(marks["weights"], expected["weights"])


@observes("channels_last")
def test_channels_last_is_how_networks_and_images_lie(files: dict[str, Path], tmp_path: Path) -> None:
    for wanted in (True, False):
        config = config_of(files, "adversarial.weight=0.5", f"channels_last={str(wanted).lower()}", "steps=1")
        trainer = Trainer(config, tmp_path / str(wanted), ALONE)
        seen: list[Tensor] = []
        trainer.state.tokenizer.encoder.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.extend(inputs))
        assert trainer.run()
        assert trainer.state.adversary is not None
        networks = nn.ModuleList([trainer.state.tokenizer, trainer.state.adversary.discriminator])
        kernels = [p for p in networks.parameters() if p.ndim == 4 and min(p.shape) > 1]
        assert len(kernels) > 10
        for tensor in (*kernels, seen[0]):
            assert tensor.is_contiguous(memory_format=torch.channels_last) is wanted


@observes("device")
@observes("timeout")
def test_device_and_timeout_are_those_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float]] = []

    def recorded(device: str, timeout: float) -> distributed.World:
        asked.append((device, timeout))
        raise ValueError("enough")

    monkeypatch.setattr(distributed, "init", recorded)
    for changes in ([], ["--set", "device=cuda:3", "--set", "timeout=7"]):
        result = CliRunner().invoke(main, ["train", "--preset", "demo", *changes, "--out", str(tmp_path)])
        assert "Error: enough" in result.output
    assert asked == [("auto", 60.0), ("cuda:3", 7.0)]


@observes("checkpoint.keep_best")
@pytest.mark.parametrize("save_every", [1, 2])
def test_the_best_checkpoint_stays(save_every: int, files: dict[str, Path], tmp_path: Path) -> None:
    """Of a run that a far too large learning rate spoils after its first step, saved anyway or for being the best."""
    for keeps, expected in (("true", ["step-000001", "step-000002"]), ("false", ["step-000002"])):
        config = config_of(
            files,
            *("eval_every=1", f"checkpoint.save_every={save_every}", "checkpoint.keep_last=1", "ema_decay=0"),
            *("optimizer.lr=0.1", "optimizer.schedule=constant", f"checkpoint.keep_best={keeps}"),
        )
        out = tmp_path / keeps
        trainer = Trainer(config, out, ALONE)
        assert trainer.run()
        measured = [json.loads(line)["eval_psnr_rgb"] for line in (out / "stats.jsonl").read_text().splitlines()]
        assert trainer.state.best_step == 1 + measured.index(max(measured))
        assert sorted(path.name for path in (out / "checkpoints").iterdir()) == expected


@observes("tracking.tensorboard")
def test_tensorboard_gets_its_files(files: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for wanted in ("true", "false"):
        run(config_of(files, f"tracking.tensorboard={wanted}"), tmp_path / wanted)
    assert list((tmp_path / "true" / "tensorboard").glob("events.*"))
    assert not (tmp_path / "false" / "tensorboard").exists()


@observes("tracking.wandb")
def test_wandb_is_told_under_the_name_of_the_project(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = wandb_stand_in.install(monkeypatch)
    run(config_of(files), tmp_path / "without")
    assert not told
    run(config_of(files, "tracking.wandb=tokenizers"), tmp_path / "with")
    assert told[0][1]["project"] == "tokenizers"
    assert [kind for kind, _ in told] == ["init", "log", "log", "log", "log", "finish"]  # 2 grids, 2 steps


@observes("quantizer.sinkhorn.stats")
def test_sinkhorn_hears_whose_stats_to_take(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the two do is seen with several processes, in test_distributed_sinkhorn.py."""
    heard: list[str] = []

    def recorded(*arguments: Any, stats: str, **options: Any) -> Any:
        heard.append(stats)
        return vqdm_cuda.sinkhorn(*arguments, stats=stats, **options)

    monkeypatch.setattr(quantizers.sinkhorn, "sinkhorn", recorded)
    for stats in ("global", "local"):
        run(config_of(files, *SINKHORN, f"quantizer.sinkhorn.stats={stats}", "steps=1"), tmp_path / stats)
    assert heard == ["global", "local"]
