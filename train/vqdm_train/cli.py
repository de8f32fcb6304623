"""The `vqdm` command. Every mistake of the user's is one sentence; what a command needs is imported when it runs.

Exit codes: 0 done; 1 an error, stated; 2 wrong usage; 75 training was stopped by SIGINT or SIGTERM after it saved a
checkpoint, and the same command goes on (75 is sysexits.h's "temporary failure", which job managers may retry).
"""

import contextlib
import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vqdm_train.config import Config

__all__ = ["EXIT_STOPPED", "main"]

EXIT_STOPPED = 75
_PATH = click.Path(path_type=Path)
_DATA = "builtin:photos, builtin:digits, a folder, a list of files (.txt), tar shards or hf:NAME."


@contextlib.contextmanager
def _errors_in_one_sentence() -> Iterator[None]:
    """What the library says about wrong input becomes click's error message."""
    from safetensors import SafetensorError

    from vqdm_train.errors import StatedError

    try:
        yield
    except (ValueError, OSError, SafetensorError, StatedError) as error:
        raise click.ClickException(str(error)) from error


def _corrected(name: str, known: Iterable[str]) -> str:
    """An unknown name, with the nearest of the known ones."""
    return f"{name}; did you mean {difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]}?"


def _print_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from vqdm_cuda import __version__

        click.echo(f"vqdm {__version__}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="The version."
)
def main() -> None:
    """Train, evaluate and use image tokenizers: images to tokens and back.

    A first run, minutes on two CPU cores:  vqdm train --preset demo
    """


# Training ------------------------------------------------------------------------------------------------------------


@main.command()
@click.option(
    "--preset",
    metavar="NAME",
    help="The recipe. Minutes on a CPU: demo, demo-vanilla, demo-gan, optvq-digits or vq-digits. Published runs: "
    "optvq-mnist, optvq-cifar10, optvq-imagenet-h4, optvq-imagenet-h8, wasserstein-imagenet-256, "
    "wasserstein-imagenet-256-50000, wasserstein-imagenet-256-100000, wasserstein-ffhq-256, wasserstein-var-2026, "
    "var-vqvae, vqgan-imagenet-f16, vqgan-ema, vqgan-fc, vqgan-lc, vit-vqgan, llamagen, simvq, ibq, rqvae or movq. "
    "Ours at 256 pixels: vqdm-256.",
)
@click.option("--data", metavar="DATA", help=_DATA)
@click.option("--out", metavar="RUN", type=_PATH, help="The run directory; runs/NAME where nothing is said.")
@click.option(
    "--config",
    "config_file",
    metavar="FILE.json",
    type=_PATH,
    help="Values over the preset's: a config.json.",
)
@click.option("--set", "settings", metavar="A.B=C", multiple=True, help="One value over those; may be repeated.")
@click.option("--steps", metavar="N", type=int, help="Optimizer steps.")
@click.option("--batch-size", metavar="N", type=int, help="Images per step, of all processes together.")
@click.option("--seed", metavar="N", type=int, help="Of the weights and of the order of the images.")
@click.option("--device", metavar="D", help="auto, cpu, cuda or cuda:N.")
def train(
    preset: str | None,
    data: str | None,
    out: Path | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    steps: int | None,
    batch_size: int | None,
    seed: int | None,
    device: str | None,
) -> None:
    """Train a tokenizer, then evaluate it. The same command goes on with a run that was stopped.

    Later words win: preset < --config < --set < the other flags. Ctrl-C saves a checkpoint and exits with code 75.
    """
    from vqdm_train import distributed
    from vqdm_train.trainer import Trainer

    trainer: Trainer | None = None
    if preset is None and config_file is None:
        raise click.UsageError("expected --preset NAME or --config FILE.json, got neither")
    if out is None:
        if preset is None:
            raise click.UsageError("expected --out RUN where no --preset gives the run its name, got none")
        out = Path("runs") / preset
    flags: dict[str, Any] = {"data": {"path": data}} if data is not None else {}
    named = {"steps": steps, "batch_size": batch_size, "seed": seed, "device": device}
    flags |= {name: value for name, value in named.items() if value is not None}
    with _errors_in_one_sentence():
        config = _configure(preset, config_file, settings, flags)
        world = distributed.init(config.device, config.timeout)
        with distributed.failing_together(world, lambda: trainer.state.step if trainer else 0):
            trainer = Trainer(config, out, world)
            finished = trainer.run()
            if world.main and finished:
                _finish_run(trainer, out)
    distributed.finish(world)
    if not finished:
        raise SystemExit(EXIT_STOPPED)


def _configure(
    preset: str | None, config_file: Path | None, settings: tuple[str, ...], flags: dict[str, Any]
) -> "Config":
    """preset < --config < --set < flags, merged first and checked together."""
    from vqdm_train.config import Config
    from vqdm_train.presets import PRESETS
    from vqdm_train.settings import apply_json, merge, parse_settings

    if preset is not None and preset not in PRESETS:
        raise ValueError(f"--preset: expected one of {', '.join(PRESETS)}, got {_corrected(preset, PRESETS)}")
    start = Config() if preset is None else PRESETS[preset]()
    changes = {} if config_file is None else _read_config(config_file)
    return apply_json(start, merge(merge(changes, parse_settings(start, settings)), flags))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        changes = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"--config: expected JSON, got {path} with a mistake: {error}") from None
    if not isinstance(changes, dict):
        raise ValueError(f"--config: expected a JSON object, got {path} with {type(changes).__name__}")
    return changes


def _finish_run(trainer: Any, out: Path) -> None:
    """eval.json, usage.json and report.html of the exported model."""
    from vqdm_cuda import ImageTokenizer
    from vqdm_train.evaluate import evaluate, table, write_json
    from vqdm_train.report import write_report

    result, counts = evaluate(
        ImageTokenizer.from_pretrained(out / "model"), trainer.held_out, device=trainer.world.device
    )
    write_json(out / "eval.json", result)
    write_json(out / "usage.json", {"counts": counts})
    write_report([out], out / "report.html")
    click.echo(f"\n{table({out.name: result})}\nreport              {out / 'report.html'}")


@main.command()
@click.option("--preset", metavar="NAME", help="The recipe, as of `vqdm train`.")
@click.option("--config", "config_file", metavar="FILE.json", type=_PATH, help="Values over the preset's.")
@click.option("--set", "settings", metavar="A.B=C", multiple=True, help="One value over those; may be repeated.")
@click.option("--batch-size", metavar="N", type=int, help="Images per step, of all processes together.")
@click.option("--device", metavar="D", help="auto, cpu, cuda or cuda:N; its memory is what there is.")
@click.option("--memory", metavar="GIB", type=click.FloatRange(0, min_open=True), help="Memory, if not the device's.")
@click.option("--json", "as_json", is_flag=True, help="For programs; memory in bytes.")
def plan(
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    batch_size: int | None,
    device: str | None,
    memory: float | None,
    as_json: bool,
) -> None:
    """Say what a run needs before it is started: parameters, tokens, memory by part, and the largest batch.

    Takes seconds, and no memory: nothing is computed, no image and no file of weights is read.
    """
    import dataclasses

    from vqdm_train import distributed
    from vqdm_train.plan import device_memory, make_plan, render

    if preset is None and config_file is None:
        raise click.UsageError("expected --preset NAME or --config FILE.json, got neither")
    named = {"batch_size": batch_size, "device": device}
    flags = {name: value for name, value in named.items() if value is not None}
    with _errors_in_one_sentence():
        config = _configure(preset, config_file, settings, flags)
        where = distributed.init(config.device).device if memory is None else None
        available = device_memory(where) if where is not None else round(float(memory or 0) * 2**30)
        planned = make_plan(config)
    if as_json:
        most = planned.largest_batch(available)
        click.echo(json.dumps(dataclasses.asdict(planned) | {"available": available, "largest_batch": most}, indent=1))
    else:
        click.echo(render(planned, config, available, "--memory" if where is None else str(where)))


# Using a checkpoint --------------------------------------------------------------------------------------------------


@main.command("eval")
@click.argument("checkpoint", type=_PATH)
@click.option("--data", metavar="DATA", required=True, help=_DATA)
@click.option("--protocol", metavar="NAME", default="rgb", show_default=True, help="How the metrics are computed.")
@click.option("--size", metavar="N", type=int, help="Pixels of the square images; what the run was trained on.")
@click.option("--device", metavar="D", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "json_file", metavar="FILE", type=_PATH, help="Also write the metrics there.")
def evaluate_command(
    checkpoint: Path, data: str, protocol: str, size: int | None, device: str, json_file: Path | None
) -> None:
    """Measure CHECKPOINT (a run directory, a step folder or a model folder) on the held-out images of DATA."""
    from vqdm_cuda import ImageTokenizer
    from vqdm_train import distributed
    from vqdm_train.data import open_dataset
    from vqdm_train.evaluate import evaluate, find_model, image_size, table, write_json

    with _errors_in_one_sentence():
        where = distributed.init(device).device
        folder = find_model(checkpoint)
        tokenizer = ImageTokenizer.from_pretrained(folder)
        images = open_dataset(
            data, split="eval", size=image_size(tokenizer, folder, size), in_channels=tokenizer.in_channels
        )
        result, _ = evaluate(tokenizer, images, protocol=protocol, device=where)
        click.echo(table({checkpoint.name: result}))
        if json_file is not None:
            write_json(json_file, result)


@main.command()
@click.argument("checkpoint", type=_PATH)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=_PATH)
@click.option("--out", metavar="DIR", type=_PATH, required=True, help="Where the pictures go, as PNG files.")
@click.option("--size", metavar="N", type=int, help="Pixels of the square images; what the run was trained on.")
@click.option("--device", metavar="D", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def reconstruct(checkpoint: Path, images: tuple[Path, ...], out: Path, size: int | None, device: str) -> None:
    """Send each IMAGE through the tokens of CHECKPOINT: the original (centre crop) left, what came back right."""
    import torch

    from vqdm_cuda import ImageTokenizer
    from vqdm_train import distributed
    from vqdm_train.data import read_image
    from vqdm_train.data.crops import center_crop, to_tensor
    from vqdm_train.evaluate import find_model, image_size
    from vqdm_train.pictures import save_image

    targets = {image: out / f"{image.stem}-reconstruction.png" for image in images}
    if {target.resolve() for target in targets.values()} & {image.resolve() for image in images}:
        raise click.ClickException(
            "--out: expected a folder where no IMAGE would be overwritten, got one that holds it"
        )
    if len(set(targets.values())) < len(images):
        raise click.ClickException("IMAGE: expected files of different names, since --out is one folder, got two alike")
    with _errors_in_one_sentence():
        where = distributed.init(device).device
        folder = find_model(checkpoint)
        tokenizer = ImageTokenizer.from_pretrained(folder).to(where).eval()
        pixels = image_size(tokenizer, folder, size)
        for image, target in targets.items():
            crop = center_crop(read_image(image, tokenizer.in_channels), pixels)
            original = to_tensor([crop]).to(where)
            save_image(target, torch.cat([original[0], tokenizer.reconstruct(original)[0]], dim=-1))
            click.echo(target)


@main.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=_PATH)
@click.option("--out", metavar="FILE.html", type=_PATH, required=True, help="The page to write.")
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Write one self-contained page about one RUN, or several side by side."""
    from vqdm_train.evaluate import table
    from vqdm_train.report import write_report

    with _errors_in_one_sentence():
        write_report(list(runs), out)
        results = {
            str(run): json.loads((run / "eval.json").read_text()) for run in runs if (run / "eval.json").exists()
        }
        click.echo((f"{table(results)}\n" if results else "") + f"report              {out}")


@main.command()
@click.argument("name")
@click.option("--out", metavar="DIR", type=_PATH, help="Where NAME.json and NAME.png go.")
@click.option("--quick", is_flag=True, help="A small version, within a minute on two CPU cores.")
@click.option("--setting", metavar="SETTING", help="Of figure5: code (the default), uniform, paper or paper-uniform.")
@click.option("--seed", metavar="N", type=click.IntRange(0, 2**31), help="Another seed than the experiment's own.")
def experiment(name: str, out: Path | None, quick: bool, setting: str | None, seed: int | None) -> None:
    """Reproduce a figure or a table of the papers. `vqdm experiment list` lists the NAMEs.

    What is measured stands in DIR/NAME.json (with --setting, NAME-SETTING.json) as it comes: the same command goes on
    where a run was stopped.
    """
    import dataclasses

    from vqdm_train.experiments import EXPERIMENTS

    if name == "list":
        for known, chosen in EXPERIMENTS.items():
            click.echo(f"{known:<21}{chosen.description}\n{'':<21}{chosen.cost}")
        return
    if name not in EXPERIMENTS:
        raise click.ClickException(
            f"NAME: expected list or one of {', '.join(EXPERIMENTS)}, got {_corrected(name, EXPERIMENTS)}"
        )
    if out is None:
        raise click.UsageError("expected --out DIR for the results, got none")
    chosen = EXPERIMENTS[name]
    if setting is not None and setting not in chosen.settings:
        expected, got = f"none, since {name} has one setting", setting
        if chosen.settings:
            expected, got = f"one of {', '.join(chosen.settings)}", _corrected(setting, chosen.settings)
        raise click.ClickException(f"--setting: expected {expected}, got {got}")
    full, small = (chosen.full, chosen.quick) if setting is None else chosen.settings[setting]
    settings = small if quick else full
    with _errors_in_one_sentence():
        files = chosen.run(out, settings if seed is None else dataclasses.replace(settings, seed=seed))
    click.echo("\n" + "\n".join(files.verdict))
    click.echo("\n" + "\n".join(map(str, (files.json, files.png, *files.more))))


# The machine and the data --------------------------------------------------------------------------------------------


@main.group("data")
def data_group() -> None:
    """Look at a data set."""


@data_group.command("check")
@click.argument("data")
def data_check(data: str) -> None:
    """Read every image of DATA and name what is corrupt, odd or oversized. Exits with 1 where a file is corrupt."""
    from vqdm_train.data import check_data

    with _errors_in_one_sentence():
        findings = check_data(data)
    for finding in findings:
        path = finding.path.encode("utf-8", "backslashreplace").decode("utf-8")  # bytes that are no text
        click.echo(f"{finding.severity}: {path}: {finding.message}")
    errors = sum(finding.severity == "error" for finding in findings)
    click.echo(f"{data}: {errors} errors, {len(findings) - errors} notes")
    if errors:
        raise SystemExit(1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(as_json: bool) -> None:
    """Say what is installed, what will run where, and how to cure each problem. Exits with 1 where there is one."""
    from vqdm_train.doctor import diagnose, render

    diagnosis = diagnose()
    click.echo(json.dumps(diagnosis, indent=1) if as_json else render(diagnosis))
    if diagnosis["problems"]:
        raise SystemExit(1)
