import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from yeoul.report import plots
from yeoul.report.content import (
    Command,
    Curve,
    ModelRow,
    Report,
    Sample,
    SpeedPoint,
    Stage,
    curves,
    read_metrics,
)
from yeoul.report.page import NO_PLOTS, gap, highlights, plain, render_html, render_markdown, write_report
from yeoul.report.summary import in_korean, in_words


def example() -> Report:
    steps = [1000.0 * i for i in range(1, 41)]
    speeds = []
    for context in (512, 2048, 8192):
        for model, role, decode, cache in (
            ("softmax", "teacher", 400_000 / context, 1024 * context),
            ("DiJiang", "converted", 300.0, 300_000),
        ):
            speeds.append(
                SpeedPoint(
                    model=model, role=role, context=context, prefill=5000.0, decode=decode,
                    decode_low=decode * 0.9, decode_high=decode * 1.1,
                    cache_bytes=cache, peak_bytes=2 * cache,
                )
            )  # fmt: skip
    return Report(
        parameters=4_100_000,
        stages=(
            Stage(name="tokenizer", seconds=4.0, result="4,000 pieces"),
            Stage(name="pretrain", tokens=1_200_000, seconds=100.0, result="loss 2.9"),
            Stage(name="align", tokens=60_000, seconds=15.0),
            Stage(name="distil", tokens=140_000, seconds=25.0),
        ),
        models=(
            ModelRow(name="softmax", role="teacher", loss=2.9, perplexity=18.2, bits_per_byte=0.91, recall=0.6),
            ModelRow(name="DiJiang", role="converted", loss=3.0, perplexity=20.1, bits_per_byte=0.95, recall=0.5),
            ModelRow(name="without the linear part", role="ablation", loss=3.3, perplexity=27.1, bits_per_byte=1.05),
            ModelRow(name="without attention", role="ablation", loss=5.0, perplexity=148.0, bits_per_byte=1.6),
        ),
        recall_chance=0.25,
        curves=(
            Curve(
                stage="pretrain",
                name="train",
                x=tuple(steps),
                y=tuple(8 - 5 * (s / 4e4) ** 0.4 for s in steps),
            ),
            Curve(stage="pretrain", name="validation", x=(2e4, 4e4), y=(4.3, 3.1)),
            Curve(
                stage="align",
                name="train",
                x=tuple(steps),
                y=tuple(1 / (1 + s / 9e3) for s in steps),
                unit="error",
            ),
        ),
        speeds=tuple(speeds),
        samples=(
            Sample(prompt="옛날 옛적에", before=" <b>토끼</b>가 살았습니다.", after=" & 거북이가 ```살았어요```."),
        ),
        sample_settings="temperature 0.8, seed 0",
        configuration={"model": {"hidden_size": 256, "attention": ("softmax",) * 5, "tie": True, "kv": None}},
        machine=(("CPU", "two slow cores"),),
        reproduce=(Command(line="yeoul demo --out runs/demo", what="The whole of it"),),
        next_steps=(Command(line='yeoul generate runs/demo/linear "옛날 옛적에"'),),
        notes=("Nothing else ran.",),
    )


class Balance(HTMLParser):
    """Raises when a tag is closed that is not the one open, outside SVG's self-closing tags."""

    VOID = {"meta", "br", "img", "hr", "link"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_writes_a_self_contained_page_and_markdown_with_its_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    html, markdown = write_report(example(), tmp_path)
    page, text = html.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")
    names = ["bits-per-byte.svg", "loss.svg", "speed.svg"]
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == names
    assert all(f"(report/{name})" in text for name in names)
    assert page.count("<svg") == 3 and 'src="' not in page
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "report",
        "report.html",
        "report.md",
    ]  # no temporary left


def test_text_from_a_model_is_escaped():
    page = render_html(example(), [])
    assert "<b>토끼" not in page and "&lt;b&gt;토끼&lt;/b&gt;" in page
    assert "````text\n옛날 옛적에 & 거북이가 ```살았어요```.\n````" in render_markdown(example(), [])


def test_plots_are_valid_deterministic_and_inline_without_clashing_ids():
    pytest.importorskip("matplotlib")
    first, second = plots.all_plots(example()), plots.all_plots(example())
    assert [p.svg for p in first] == [p.svg for p in second]
    ids: list[str] = []
    for plot in first:
        root = ET.fromstring(plots.inline(plot))
        own = [e.get("id") for e in root.iter() if e.get("id")]
        targets = {v[1:] for e in root.iter() for k, v in e.attrib.items() if k.endswith("href") and v[0] == "#"}
        assert targets <= set(own)
        ids += own
    assert len(ids) == len(set(ids))


def test_without_matplotlib_there_is_one_clear_sentence_and_the_tables(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not plots.available()
    html, markdown = write_report(example(), tmp_path)
    for path in (html, markdown):
        text = path.read_text(encoding="utf-8").replace("&#39;", "'")
        assert NO_PLOTS in text and "0.950" in text


def test_summary_says_the_numbers():
    words = in_words(example())
    assert "1.2 million tokens in 1 min 40 s" in words
    assert "4.1 million-parameter" in words and "0.910 bits per byte" in words
    assert "200,000 tokens in 40 s, 17 % of the pretraining" in words
    assert "0.040 bits per byte (4.4 %) worse than its teacher" in words
    assert "At 8,192 tokens of context it decodes 6.1 times as fast" in words and "1/28" in words
    assert "at 512 tokens and below softmax is still the faster one" in words
    assert "without the linear part +0.100; without attention +0.650" in words
    assert "60 %" in words and "guessing gives 25 %" in words
    korean = in_korean(example())
    assert "0.910비트에서 0.950비트" in korean and "6.1배" in korean and "28분의 1" in korean


def test_summary_admits_what_did_not_work():
    report = example()
    slow = [replace(p, decode=100.0) if p.role == "converted" else p for p in report.speeds if p.context < 4096]
    words = in_words(replace(report, speeds=tuple(slow)))
    assert "decodes at 0.51 times the speed of softmax" in words and "still the faster" not in words
    assert "2.0배 느리며" in in_korean(replace(report, speeds=tuple(slow)))


def test_an_empty_report_is_a_page():
    empty = Report()
    assert "From softmax to linear time" in render_html(empty, [])
    assert highlights(empty) == [] and in_words(empty) == "" and plots.speed(empty) is None
    assert render_markdown(empty, []).startswith("# From softmax")


def test_reads_metrics_with_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"kind": "train", "step": 1, "tokens": 10, "loss": 3.0}\n{"kind": "val", "step": 1, "tokens": 10, '
        '"loss": 4.0, "bits_per_byte": 1.0}\n{"kind": "train", "step": 2, "tok',
        encoding="utf-8",
    )
    train, val = curves(read_metrics(path), "pretrain")
    assert (train.name, train.x, train.y) == ("train", (10.0,), (3.0,))
    assert (val.name, val.y) == ("validation", (4.0,))
    assert read_metrics(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("function", "value", "words"),
    [
        (plain, ("softmax",) * 5, "softmax × 5"), (plain, {"a": [1, 2]}, "a: 1, 2"), (plain, None, "–"),
    ],
)  # fmt: skip
def test_values_in_words(function, value, words):
    assert function(value) == words


def test_gap_is_against_the_teacher():
    report = example()
    assert [gap(report, row) for row in report.models] == ["", "+0.040", "+0.140", "+0.690"]
