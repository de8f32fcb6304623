"""vqdm_train.usage_alarm: it speaks of a collapse, once, and not of what so few tokens could not do better."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tiny_run import ALONE, tiny_config, write_images
from vqdm_train.config import Config
from vqdm_train.quantizer import KINDS, QuantizerConfig
from vqdm_train.settings import flatten
from vqdm_train.trainer import Trainer
from vqdm_train.usage_alarm import UsageAlarm, reachable_codes


def counts(used: int, *, codebook_size: int = 1000, tokens: int = 10_000) -> Tensor:
    out = torch.zeros(codebook_size, dtype=torch.int64)
    out[:used] = tokens // used
    return out


def said(alarm: UsageAlarm, *used: int, name: str = "", **options: int) -> list[bool]:
    return [alarm.look({name: counts(u, **options)}) is not None for u in used]


def test_reachable_codes_are_those_of_even_draws() -> None:
    drawn = torch.randint(100, (2000, 150), generator=torch.Generator().manual_seed(0))
    measured = sum(len(row.unique()) for row in drawn) / len(drawn)
    assert reachable_codes(100, 150) == pytest.approx(measured, rel=3e-3)
    assert reachable_codes(2**30, 1000) == pytest.approx(1000, rel=1e-5)
    assert reachable_codes(1, 5) == 1
    assert reachable_codes(10, 0) == 0


def test_it_speaks_once_per_fall() -> None:
    alarm = UsageAlarm(0.05, QuantizerConfig())
    assert said(alarm, 40, 40, 40, 40, 40) == [False, False, True, False, False]  # of 1000, below 50 thrice
    assert said(alarm, 60, 40, 40) == [False, False, False]
    assert said(alarm, 40, 40) == [True, False]


def test_single_low_windows_are_chance() -> None:
    assert not any(said(UsageAlarm(0.05, QuantizerConfig()), *[1, 1, 900] * 4))


def test_few_tokens_are_no_collapse() -> None:
    """100 tokens cannot use 5 % of 16,384 codes, and need not."""
    alarm = UsageAlarm(0.05, QuantizerConfig(codebook_size=16384))
    assert not any(said(alarm, *[50] * 5, codebook_size=16384, tokens=100))
    assert said(alarm, *[2] * 3, codebook_size=16384, tokens=100) == [False, False, True]


def test_the_sentence_names_part_numbers_and_cure() -> None:
    alarm = UsageAlarm(0.05, QuantizerConfig(scales=(1, 2)))
    window = {"": counts(900), "scale_1": counts(2, tokens=100), "scale_2": counts(500)}
    assert [alarm.look(window) for _ in range(2)] == [None, None]
    sentence = alarm.look(window)
    assert sentence is not None
    assert "scale 1: 2 of the 95 codes that 100 tokens could reach" in sentence
    assert "scale 2" not in sentence
    assert "wasserstein_weight" in sentence
    assert "kmeans" not in sentence  # which several scales do not take


def test_zero_is_never() -> None:
    assert not any(said(UsageAlarm(0.0, QuantizerConfig()), *[1] * 10))


@pytest.mark.parametrize("kind", KINDS)
def test_every_cure_names_options_that_are_there(kind: str) -> None:
    sizes = {"finite_scalar": 1000, "lookup_free": 1024}
    plain = {"wasserstein_weight": 0.0, "commitment_weight": 0.25}
    alarm = UsageAlarm(1.0, QuantizerConfig(kind=kind, codebook_size=sizes.get(kind, 64), **plain))  # type: ignore[arg-type]
    named = re.findall(r"(?:quantizer|optimizer)\.[a-z_.]*[a-z_]", alarm.cure)
    assert named
    assert set(named) <= set(flatten(Config()))


@pytest.mark.parametrize("threshold", [0, 1])
def test_a_run_raises_it_at_its_own_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], threshold: int
) -> None:
    settings = ("steps=4", "log_every=1", f"tracking.usage_alarm={threshold}")
    assert Trainer(tiny_config(write_images(tmp_path / "images"), *settings), tmp_path / "run", ALONE).run()
    assert capsys.readouterr().out.count("step 3: few codes are in use") == threshold
