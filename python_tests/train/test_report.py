"""vqdm_train.report: what stands on the page, that it stands there safely, and what a broken run directory gives."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from vqdm_train.report import write_report
from vqdm_train.report_charts import Line, _running_mean, code_use_chart, curve_chart, part_chart

NASTY = '<script>alert("&\'x")</script>$title'


def write_run(root, name="demo", *, steps=100, counts=(5, 0, 3, 1), config=None, metrics=None, samples=(0, 50, 100)):
    """A small run directory, as the trainer and the evaluation write it."""
    folder = root / name
    (folder / "samples").mkdir(parents=True)
    settings = {"data": {"path": "builtin:photos", "image_size": 64}, "steps": steps, "seed": 0} | (config or {})
    (folder / "config.json").write_text(json.dumps(settings))
    rows = [
        {"step": s, "loss": 2.0**-s, "wasserstein": 0.5, "psnr_rgb": 10.0 + s, "utilization": 0.5, "lr": 0.1}
        for s in range(10, steps + 1, 10)
    ]
    (folder / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    skipped = {"lpips_alex": "no weight file", "rfid": "fewer than 2,048 images"}
    measured = {
        "protocol": "rgb",
        "num_images": 291,
        "num_tokens": 37830,
        "psnr_rgb": 21.987,
        "psnr_y": 24.5,
        "ssim_rgb": 0.61234,
        "ssim_y": 0.7,
        "sharpness": 0.6789,
        "lpips_alex": None,
        "lpips_vgg": None,
        "rfid": None,
        "quantization_error": 0.0123567,
        "utilization": 0.975,
        "perplexity": 812.34,
        "tokens_per_image": 130,
        "bits_per_image": 1300.0,
        "codebook_size": 1024,
        "skipped": skipped,
    }
    (folder / "eval.json").write_text(json.dumps(measured | (metrics or {})))
    (folder / "usage.json").write_text(json.dumps({"counts": list(counts)}))
    for step in samples:
        Image.fromarray(np.full((4, 8, 3), step, dtype=np.uint8)).save(folder / f"samples/step-{step:06d}.png")
    return folder


def page(out, *runs):
    write_report(list(runs), out / "report.html")
    return (out / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Checks that tags nest, and collects texts, addresses and table rows."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def row(self, label):
        (found,) = [row for row in self.rows if row and row[0] == label]
        return found[1:]


# --- values -----------------------------------------------------------------------------------------------------------


def test_metrics_stand_with_units_and_reasons(tmp_path):
    content = Page(page(tmp_path, write_run(tmp_path)))
    expected = {
        "PSNR, RGB (dB) ↑": "21.99",
        "PSNR, Y (dB) ↑": "24.50",
        "SSIM, RGB ↑": "0.6123",
        "SSIM, Y ↑": "0.7000",
        "sharpness": "0.679",
        "LPIPS, AlexNet ↓": "no weight file",
        "LPIPS, VGG ↓": "not measured",
        "rFID ↓": "fewer than 2,048 images",
        "quantization error": "0.01236",
        "codes used (%) ↑": "97.5",
        "perplexity (codes) ↑": "812.3",
        "codebook size (codes)": "1,024",
        "tokens per image": "130",
        "bits per image (bits)": "1,300",
        "images measured": "291",
        "tokens measured": "37,830",
        "protocol": "rgb",
    }
    assert {label: content.row(label)[0] for label in expected} == expected
    assert "measured on 291 held-out images (37,830 tokens)" in content.text


def test_code_use_is_counted(tmp_path):
    content = Page(page(tmp_path, write_run(tmp_path, counts=[6, 0, 3, 1])))
    assert "3 of 4 codes used (75.0 %); the most used one is 60.00 % of 10 tokens" in content.text


def test_every_logged_term_has_a_chart(tmp_path):
    text = page(tmp_path, write_run(tmp_path))
    captions = re.findall(r"<figcaption>([^<]+)</figcaption><svg", text)
    assert captions == [
        "loss, all terms together",
        "PSNR of training batches, dB",
        "codes used since the last logged step",
        "wasserstein",
        "learning rate",
    ]


def write_stats(run, *rows):
    (run / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def captions(section):
    found = re.findall(r"<figcaption>(.*?)</figcaption><svg", section)
    return [re.sub(r"<span[^>]*></span>", "", caption) for caption in found]


def lines(figure):
    """How many curves a chart has, of each colour."""
    found = re.findall(r'<path d="[^"]*"[^>]*style="fill: none;[^"]*stroke: var\(--series-(\d)\)', figure)
    return {int(color): found.count(color) for color in set(found)}


def test_curves_stand_with_what_they_belong_to_and_runs_may_log_different_keys(tmp_path):
    """The first run is adversarial from step 20 on and not evaluated; the second is neither."""
    scales = {"utilization_scale_1": 0.1, "utilization_scale_10": 0.9, "utilization_scale_2": 0.5}
    plain = {"loss": 1.0, "l1": 0.5, "utilization": 0.5, "gradient": 2.0, "lr": 0.1, "eval_psnr_rgb": 20.0}
    late = {"adversarial": 0.3, "logits_real": 0.5, "logits_fake": -0.5, "discriminator_gradient": 1.5}
    first = write_run(tmp_path, "gan")
    write_stats(first, {"step": 10, **plain}, {"step": 20, **plain, **late}, {"step": 30, **plain, **late})
    (first / "eval.json").unlink()
    second = write_run(tmp_path, "plain")
    write_stats(second, *({"step": step, **plain, **scales} for step in (10, 20)))
    text = page(tmp_path, first, second)
    section = text[text.index('<section id="training">') : text.index('<section id="config">')]
    headings = re.split(r"<h3>|<details>", section)
    assert [captions(part) for part in headings] == [
        ["loss, all terms together", "codes used since the last logged step"],
        ["PSNR, RGB, dB"],
        ["l1", "adversarial"],
        ["logits of the discriminator: images; dashed, reconstructions"],
        ["norm of the gradient", "norm of the gradient of the discriminator"],
        ["codes used, by scale, in the last logged steps", "plain: codes used; the first scale is palest"],
        ["learning rate"],
    ]
    figures = dict(re.findall(r"<figcaption>(.*?)</figcaption>(<svg.*?</svg>)", section, re.DOTALL))
    assert lines(figures["l1"]) == {0: 1, 1: 1}
    assert lines(figures["adversarial"]) == {0: 1}
    logits = figures["logits of the discriminator: images; dashed, reconstructions"]
    assert lines(logits) == {0: 2}
    assert logits.count("stroke-dasharray") == 1
    by_scale = figures["codes used, by scale, in the last logged steps"]
    assert [label for label in labels(by_scale) if "%" not in label] == ["1", "2", "10"]
    assert Page(text).row("PSNR, RGB (dB) ↑")[:2] == ["not evaluated yet", "21.99"]


@pytest.mark.parametrize("word", ["head", "depth"])
def test_heads_and_depths_have_charts_of_their_own(tmp_path, word):
    run = write_run(tmp_path)
    write_stats(run, {"step": 10, f"perplexity_{word}_1": 3.0, f"perplexity_{word}_2": 5.0})
    text = page(tmp_path, run)
    assert f"<h3>Use of the codes, by {word}</h3>" in text
    assert f"perplexity, codes, by {word}, in the last logged steps" in text


def test_labels_of_many_scales_do_not_overlap():
    names = [str(size) for size in range(1, 31)]
    assert labels(part_chart(names, [[0.5] * 30], percent=True))[:10] == names[::3]


def test_samples_are_inside_the_page(tmp_path):
    run = write_run(tmp_path)
    content = Page(page(tmp_path, run))
    images = [address for address in content.addresses if address.startswith("data:")]
    files = [run / f"samples/step-{step:06d}.png" for step in (100, 0, 50)]  # the last one first
    assert images == ["data:image/png;base64," + base64.b64encode(file.read_bytes()).decode() for file in files]
    assert "demo, step 100" in content.text


def test_runs_side_by_side_mark_the_best_and_what_differs(tmp_path):
    first = write_run(tmp_path, "demo", config={"quantizer": {"wasserstein_weight": 0.5}})
    second = write_run(
        tmp_path,
        "demo-vanilla",
        config={"quantizer": {"wasserstein_weight": 0.0}, "extra": None},
        metrics={"psnr_rgb": 19.5, "utilization": 0.05},
    )
    text = page(tmp_path, first, second)
    content = Page(text)
    assert "<h1>demo and demo-vanilla</h1>" in text
    assert content.row("PSNR, RGB (dB) ↑")[:2] == ["21.99", "19.50"]
    assert re.findall(r'<td class="best">([^<]*)', text) == ["21.99", "97.5"]  # of equal values none is best
    differing = re.findall(r'<tr class="differs"><td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td>', text)
    assert differing == [("quantizer.wasserstein_weight", "0.5", "0.0"), ("extra", "(absent)", "null")]
    assert "2 values differ between the runs" in content.text
    assert content.row("data.path") == ["builtin:photos"]


def test_runs_of_different_protocols_are_not_compared(tmp_path):
    first = write_run(tmp_path, "a")
    second = write_run(tmp_path, "b", metrics={"num_images": 12, "psnr_rgb": 30.0})
    text = page(tmp_path, first, second)
    assert "their metrics do not compare" in text
    assert 'class="best"' not in text


def test_runs_of_one_name_are_told_apart(tmp_path):
    text = page(tmp_path, write_run(tmp_path, "x/demo"), write_run(tmp_path, "y/demo"))
    assert "<h1>x/demo and y/demo</h1>" in text


# --- properties -------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(tmp_path):
    """No script, no address but data URIs and references into itself, and the same bytes from the same runs."""
    runs = [write_run(tmp_path, "a", steps=2000), write_run(tmp_path, "b")]
    text = page(tmp_path, *runs)
    content = Page(text)
    assert "script" not in content.tags
    assert "link" not in content.tags
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in content.addresses)
    assert "http" not in text
    assert "@import" not in text
    assert re.findall(r"url\((.)", text) == ["#"] * text.count("url(")
    assert page(tmp_path, *runs) == text
    assert not list(tmp_path.glob(".*partial*"))


def test_charts_are_well_formed_and_take_the_pages_colours():
    chart = curve_chart([Line([1, 2, 3], [1.0, 0.1, 0.01]), Line([1, 2, 3], [0.5, 0.2, 0.1], color=1)], log=True)
    ElementTree.fromstring(chart)
    assert "var(--series-0)" in chart
    assert "var(--series-1)" in chart
    assert "var(--muted)" in chart
    assert not re.findall(r"#[0-9a-fA-F]{6}", chart)
    ElementTree.fromstring(code_use_chart([[3, 0, 1], [0, 0, 0], []]))


def labels(chart):
    return [
        text
        for text in re.findall(r"<text[^>]*>([^<]*)</text>", chart)
        if text not in ("step", "code, most used first")
    ]


def test_axes_are_logarithmic_where_values_span_decades():
    falling = [10.0 ** -(i / 10) for i in range(40)]
    steps = list(range(40))
    assert {"1", "0.1", "0.01", "0.001"} <= set(labels(curve_chart([Line(steps, falling)], log=True)))
    assert "0.001" not in labels(curve_chart([Line(steps, falling)], log=False))
    with_zero = curve_chart([Line(steps, [*falling[:-1], 0.0])], log=True)  # zero has no place on a log axis
    assert "0.001" not in labels(with_zero)
    assert "50 %" in labels(curve_chart([Line([0, 1], [0.0, 1.0])], percent=True))


def test_the_running_mean_is_one_of_neighbours_and_keeps_gaps():
    values = np.arange(100.0) ** 2
    values[50] = np.nan
    mean = _running_mean(values)  # two neighbours to either side
    assert mean[10] == (values[8:13].sum()) / 5
    assert mean[0] == values[:3].mean()
    assert mean[99] == values[97:].mean()
    assert mean[51] == (values[49] + values[51] + values[52] + values[53]) / 4
    assert np.flatnonzero(np.isnan(mean)).tolist() == [50]


# --- nasty ------------------------------------------------------------------------------------------------------------


def test_every_text_is_escaped(tmp_path):
    run = write_run(
        tmp_path,
        "a&b<i>",
        config={NASTY: NASTY, "list": [NASTY]},
        metrics={"protocol": NASTY, "psnr_rgb": NASTY, "skipped": {"rfid": NASTY}},
    )
    with (run / "stats.jsonl").open("a") as file:
        file.write(json.dumps({"step": 200, NASTY: 1.0, "words": NASTY}) + "\n")
    text = page(tmp_path, run, write_run(tmp_path, "other"))
    content = Page(text)
    assert "<script" not in text
    assert "<i>" not in text
    assert "script" not in content.tags
    assert content.text.count("alert") >= 5
    assert "a&b<i>" in content.text


def test_a_run_that_just_began_has_a_page(tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "config.json").write_text('{"steps": 5}')
    content = Page(page(tmp_path, folder))
    assert "Not evaluated yet" in content.text
    assert "no step logged yet" in content.text
    beside = Page(page(tmp_path, folder, write_run(tmp_path)))
    assert beside.row("PSNR, RGB (dB) ↑")[:2] == ["not evaluated yet", "21.99"]


def test_a_half_written_last_line_is_left_out_and_repeated_steps_count_once(tmp_path):
    run = write_run(tmp_path, steps=30)
    with (run / "stats.jsonl").open("a") as file:
        file.write('{"step": 30, "loss": 7.0}\n{"step": 40, "lo')
    content = Page(page(tmp_path, run))
    assert "30 steps logged" in content.text


def test_values_that_are_no_numbers_do_not_stop_the_page(tmp_path):
    run = write_run(tmp_path, metrics={"psnr_rgb": float("inf"), "perplexity": float("nan"), "utilization": True})
    with (run / "stats.jsonl").open("a") as file:
        file.write('{"step": 110, "loss": NaN, "psnr_rgb": Infinity, "flag": true}\n')
    content = Page(page(tmp_path, run))
    assert content.row("PSNR, RGB (dB) ↑")[0] == "∞"
    assert content.row("perplexity (codes) ↑")[0] == "nan"


def test_one_step_and_no_use_still_draw(tmp_path):
    run = write_run(tmp_path, steps=10, counts=[0, 0, 0])
    assert "not counted yet" in Page(page(tmp_path, run)).text


def test_many_runs_and_long_ones_stay_small(tmp_path):
    runs = [write_run(tmp_path, f"run-{i}", steps=20_000, counts=range(4096)) for i in range(8)]
    text = page(tmp_path, *runs)
    assert len(text) < 8_000_000
    assert "series-5" in text


# --- bad --------------------------------------------------------------------------------------------------------------


def test_bad_runs_are_named_and_nothing_is_written(tmp_path):
    out = tmp_path / "report.html"
    run = write_run(tmp_path)
    with pytest.raises(ValueError, match="expected at least one run directory, got none"):
        write_report([], out)
    with pytest.raises(ValueError, match=r"expected a run directory, which holds config\.json, got .*nowhere"):
        write_report([run, tmp_path / "nowhere"], out)
    with pytest.raises(ValueError, match="expected different run directories, got one twice"):
        write_report([run, run], out)
    (run / "eval.json").write_text("{")
    with pytest.raises(ValueError, match=r"expected JSON in .*eval\.json, got a file that does not parse"):
        write_report([run], out)
    (run / "eval.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"expected a JSON object in .*eval\.json, got list"):
        write_report([run], out)
    (run / "eval.json").write_text("{}")
    (run / "usage.json").write_text('{"counts": [1, -2]}')
    with pytest.raises(ValueError, match=r"expected counts to be a list of whole numbers >= 0 in .*usage\.json"):
        write_report([run], out)
    (run / "usage.json").unlink()
    stats = (run / "stats.jsonl").read_text()
    (run / "stats.jsonl").write_text("junk\n" + stats)
    with pytest.raises(ValueError, match=r"expected a JSON object with a step on line 1 of .*stats\.jsonl, got 'junk'"):
        write_report([run], out)
    assert not out.exists()


@pytest.mark.parametrize("step", ['"a"', "null", "-1", "1" + "0" * 400])
def test_a_step_that_is_none_is_refused_by_line(tmp_path: Path, step: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "stats.jsonl").write_text(f'{{"step": {step}, "loss": 1}}\n{{"step": 2, "loss": 1}}\n')
    with pytest.raises(ValueError, match="expected a JSON object with a step on line 1 of"):
        write_report([tmp_path], tmp_path / "page.html")
