"""The command line: every command, every flag of train, errors in one sentence, exit codes, signals to a process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tiny_run import tiny_flags, write_images
from vqdm_cuda import __version__
from vqdm_train.cli import EXIT_STOPPED, main
from vqdm_train.presets import PRESETS

ROOT = Path(__file__).parents[2]


def vqdm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    result = vqdm("train", *tiny_flags(images), "--steps", "3", "--out", out)
    assert result.exit_code == 0, result.output
    return out


def config_of(out: Path) -> dict[str, dict[str, object]]:
    return json.loads((out / "config.json").read_text())


# train ----------------------------------------------------------------------------------------------------------------


def test_train_leaves_a_whole_run_directory(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    files = {"config.json", "stats.jsonl", "eval.json", "usage.json", "report.html"}
    assert files | {"samples", "checkpoints", "model"} <= names
    result, usage = json.loads((run / "eval.json").read_text()), json.loads((run / "usage.json").read_text())
    assert result["num_images"] == 6
    assert sum(usage["counts"]) == result["num_tokens"]
    assert len(usage["counts"]) == 32


def test_the_same_command_on_a_finished_run(images: Path, run: Path) -> None:
    before = json.loads((run / "eval.json").read_text())
    result = vqdm("train", *tiny_flags(images), "--steps", "3", "--out", run)
    assert result.exit_code == 0, result.output
    assert json.loads((run / "eval.json").read_text()) == before
    assert "PSNR (RGB)" in result.output
    assert str(run / "report.html") in result.output


def test_precedence(images: Path, tmp_path: Path) -> None:
    """preset < --config < --set < flags"""
    file = tmp_path / "over.json"
    file.write_text(json.dumps({"steps": 7, "batch_size": 2, "seed": 5, "optimizer": {"lr": 0.5}}))
    changes = ["--config", str(file), "--set", "seed=6", "--set", "batch_size=3", "--steps", "1", "--batch-size", "2"]
    result = vqdm("train", *tiny_flags(images), *changes, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    config = config_of(tmp_path / "run")
    # lr is in TINY, which is given by --set
    assert (config["steps"], config["batch_size"], config["seed"]) == (1, 2, 6)
    assert config["optimizer"]["lr"] == 3e-3
    assert config["optimizer"]["codebook_lr"] == PRESETS["demo"]().optimizer.codebook_lr


def test_config_json_reproduces_the_run(run: Path, tmp_path: Path) -> None:
    result = vqdm("train", "--config", run / "config.json", "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert config_of(tmp_path / "again") == config_of(run)
    for name in ("eval.json", "usage.json", "model/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


def test_every_flag_changes_the_config(images: Path, tmp_path: Path) -> None:
    flags = {"--seed": ("3", "seed", 3), "--device": ("cpu", "device", "cpu"), "--batch-size": ("2", "batch_size", 2)}
    for i, (flag, (text, key, value)) in enumerate(flags.items()):
        out = tmp_path / str(i)
        result = vqdm("train", *tiny_flags(images), "--steps", "1", flag, text, "--out", out)
        assert result.exit_code == 0, result.output
        assert config_of(out)[key] == value
        assert config_of(out)["data"]["path"] == str(images)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "dmeo"], "movq, got dmeo; did you mean demo?"),
        ([], "expected --preset NAME or --config FILE.json, got neither"),
        (["--config", "nowhere.json"], "expected --out RUN where no --preset gives the run its name, got none"),
        (["--config", "nowhere.json", "--out", "x"], "nowhere.json"),
        (["--preset", "demo", "--set", "setps=3"], "--set: unknown key setps; did you mean steps?"),
        (["--preset", "demo", "--steps", "0"], "config: expected steps >= 1, got 0"),
        (["--preset", "demo", "--data", "nowhere"], "got 'nowhere'"),
        (["--preset", "demo", "--device", "cuda:99"], "device: expected "),
        (["--preset", "demo", "--device", "tpu"], "config: expected device to be auto, cpu, cuda or cuda:N, got tpu"),
    ],
)
def test_train_errors(arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = vqdm("train", *arguments)
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_another_config_is_refused_by_name(images: Path, run: Path) -> None:
    before = (run / "config.json").read_bytes()
    result = vqdm("train", *tiny_flags(images), "--seed", "9", "--out", run)
    assert result.exit_code == 1
    assert "only steps and device may change: seed (0 -> 9)" in result.output
    assert (run / "config.json").read_bytes() == before


def test_bad_config_file(tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    for text, said in [("{", "--config: expected JSON, got"), ("[]", "--config: expected a JSON object, got")]:
        file.write_text(text)
        result = vqdm("train", "--config", file, "--out", tmp_path / "run")
        assert result.exit_code == 1
        assert said in result.output
    assert not (tmp_path / "run").exists()


# eval, reconstruct, report --------------------------------------------------------------------------------------------


def test_eval(run: Path, images: Path, tmp_path: Path) -> None:
    expected = json.loads((run / "eval.json").read_text())
    for checkpoint in (run, run / "checkpoints" / "step-000003", run / "model"):
        result = vqdm("eval", checkpoint, "--data", images, "--json", tmp_path / "eval.json")
        assert result.exit_code == 0, result.output
        assert json.loads((tmp_path / "eval.json").read_text()) == expected
        assert f"{expected['psnr_rgb']:.2f} dB" in result.output
    mistakes: list[tuple[list[str | Path], str]] = [
        ([run, "--data", images, "--protocol", "vqdm"], "--protocol: expected one of rgb, got vqdm"),
        ([images, "--data", images], "CHECKPOINT: expected a run directory"),
        ([run, "--data", "nowhere"], "got 'nowhere'"),
        ([run, "--data", images, "--size", "64"], "--size: expected 32"),
    ]
    for bad, said in mistakes:
        result = vqdm("eval", *bad)
        assert result.exit_code == 1
        assert said in result.output


def test_reconstruct(run: Path, images: Path, tmp_path: Path) -> None:
    files = sorted(images.iterdir())[:2]
    result = vqdm("reconstruct", run, *files, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for file in files:
        with Image.open(tmp_path / "out" / f"{file.stem}-reconstruction.png") as pair:
            assert (pair.size, pair.mode) == ((64, 32), "RGB")
    result = vqdm(
        "reconstruct", run, files[0], files[0].parent / ".." / files[0].parent.name / files[0].name, "--out", "x"
    )
    assert result.exit_code == 1
    assert "IMAGE: expected files of different names" in result.output
    beside = files[0].with_name("a-reconstruction.png")
    before = files[0].read_bytes()
    assert vqdm("reconstruct", run, files[0], "--out", files[0].parent).exit_code == 0
    assert files[0].read_bytes() == before
    (files[0].parent / f"{files[0].stem}-reconstruction.png").rename(beside)
    result = vqdm("reconstruct", run, beside, files[0].parent / "a.png", "--out", files[0].parent)
    assert result.exit_code == 1
    assert "--out: expected a folder where no IMAGE would be overwritten" in result.output
    beside.unlink()
    result = vqdm("reconstruct", run, run / "config.json", "--out", tmp_path / "bad")
    assert result.exit_code == 1
    assert "config.json" in result.output


def test_report(run: Path, tmp_path: Path) -> None:
    result = vqdm("report", run, "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "<html" in (tmp_path / "page.html").read_text()
    result = vqdm("report", tmp_path, "--out", tmp_path / "bad.html")
    assert result.exit_code == 1
    assert not (tmp_path / "bad.html").exists()


# data check, doctor, help ---------------------------------------------------------------------------------------------


def test_data_check(images: Path, tmp_path: Path) -> None:
    result = vqdm("data", "check", images)
    assert result.exit_code == 0, result.output
    assert f"{images}: 0 errors" in result.output
    folder = write_images(tmp_path / "images", count=2)
    (folder / "broken.png").write_bytes(b"not a picture")
    result = vqdm("data", "check", folder)
    assert result.exit_code == 1
    assert "error: broken.png: " in result.output
    assert "1 errors" in result.output


def test_doctor() -> None:
    text, data = vqdm("doctor"), vqdm("doctor", "--json")
    diagnosis = json.loads(data.output)
    assert __version__ in text.output
    assert text.exit_code == data.exit_code == (1 if diagnosis["problems"] else 0)


def test_version() -> None:
    assert vqdm("--version").output == f"vqdm {__version__}\n"


def test_help_names_every_preset_and_is_light() -> None:
    said = "".join(vqdm("train", "--help").output.split())  # names may be broken at their hyphens
    assert all(name in said for name in PRESETS)
    script = "import sys; import vqdm_train.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    path = os.pathsep.join([str(ROOT), str(ROOT / "train")])
    assert subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}).returncode == 0


# a process of its own -------------------------------------------------------------------------------------------------


def test_stopped_by_a_signal_and_started_again(images: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "train")])
    command = [sys.executable, "-m", "vqdm_train", "train", *tiny_flags(images), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--steps", "100000"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    stats = tmp_path / "run" / "stats.jsonl"
    deadline = time.monotonic() + 60
    while not (stats.exists() and stats.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == EXIT_STOPPED, said
    assert "the same command goes on from there" in said
    (newest, *_) = sorted((tmp_path / "run" / "checkpoints").iterdir(), reverse=True)
    step = int(newest.name.removeprefix("step-"))
    again = subprocess.run([*command, "--steps", str(step + 1)], env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"going on after step {step}" in again.stdout
    assert "PSNR (RGB)" in again.stdout


def test_a_config_that_cannot_be_built_does_not_claim_the_directory(images: Path, tmp_path: Path) -> None:
    flags = [*tiny_flags(images), "--steps", "1", "--out", str(tmp_path / "run")]
    assert vqdm("train", *flags, "--data", tmp_path / "nowhere").exit_code == 1
    result = vqdm("train", *flags)
    assert result.exit_code == 0, result.output


def test_a_missing_file_of_weights_does_not_claim_the_directory(images: Path, tmp_path: Path) -> None:
    flags = [*tiny_flags(images), "--steps", "1", "--out", str(tmp_path / "run")]
    refused = vqdm("train", *flags, "--set", "losses.perceptual=1", "--set", f"losses.perceptual_weights={tmp_path}/no")
    assert "--set losses.perceptual=0 does without it" in refused.output
    result = vqdm("train", *flags, "--set", "losses.perceptual=0")  # as the sentence says
    assert result.exit_code == 0, result.output


def test_an_unknown_device_is_one_sentence(images: Path, run: Path) -> None:
    result = vqdm("eval", run, "--data", images, "--device", "gpu")
    assert result.exit_code == 1
    assert "Error: device: expected auto, cpu, cuda or cuda:N, got gpu" in result.output


def test_fewer_steps_than_done_are_refused(images: Path, run: Path) -> None:
    result = vqdm("train", *tiny_flags(images), "--steps", "2", "--out", run)
    assert result.exit_code == 1
    assert "--steps: expected at least 3, the steps done already, got 2" in result.output


def test_a_run_without_an_undamaged_checkpoint_does_not_start_anew(images: Path, tmp_path: Path) -> None:
    flags = [*tiny_flags(images), "--steps", "1", "--out", str(tmp_path / "run")]
    assert vqdm("train", *flags).exit_code == 0
    for weights in (tmp_path / "run" / "checkpoints").glob("*/weights.safetensors"):
        weights.write_bytes(b"torn")
    result = vqdm("train", *flags[:-4], "--steps", "2", *flags[-2:])
    assert result.exit_code == 1
    assert "expected at least one undamaged checkpoint, got none" in result.output


def test_corrupt_images_are_named_and_too_many_stop_the_run_in_one_sentence(tmp_path: Path) -> None:
    train = write_images(tmp_path / "data" / "train", count=4)
    write_images(tmp_path / "data" / "val", count=2)
    (train / "broken.png").write_bytes(b"not a picture")
    flags = [*tiny_flags(tmp_path / "data"), "--steps", "8", "--out", str(tmp_path / "run")]
    result = vqdm("train", *flags)
    assert result.exit_code == 1
    assert "broken.png" in result.output
    assert "expected at most 0.10% corrupt files" in result.output
    assert "Traceback" not in result.output


def test_json_is_written_through_what_is_no_regular_file(images: Path, run: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.json"
    (tmp_path / "link.json").symlink_to(real)
    assert vqdm("eval", run, "--data", images, "--json", tmp_path / "link.json").exit_code == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads(real.read_text())["num_images"] == 6
    assert vqdm("eval", run, "--data", images, "--json", "/dev/null").exit_code == 0
    assert Path("/dev/null").is_char_device()
