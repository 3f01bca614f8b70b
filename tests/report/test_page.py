import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from importlib import resources

import pytest

from report.reading import NAMES, foreign, seen
from yeoul.report import plots
from yeoul.report.content import (
    Command,
    Curve,
    ModelRow,
    Report,
    Sample,
    SpeedPoint,
    Stage,
    Text,
    curves,
    read_metrics,
)
from yeoul.report.korean import in_korean
from yeoul.report.languages import KOREAN, korean_duration, korean_number, korean_rate
from yeoul.report.markdown import as_text, gap, render_markdown
from yeoul.report.page import NO_PLOTS, highlights, render_html, write_report
from yeoul.report.summary import in_words


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
            Stage(name="tokenizer", seconds=4.0, result=Text("4,000 pieces", "조각 4,000개")),
            Stage(name="pretrain", tokens=1_200_000, seconds=100.0, result=Text("loss 2.9", "손실 2.9")),
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
                unit="relative error of a layer",
            ),
        ),
        speeds=tuple(speeds),
        samples=(
            Sample(prompt="옛날 옛적에", before=" <b>토끼</b>가 살았습니다.", after=" & 거북이가 ```살았어요```."),
        ),
        sample_settings=Text("temperature 0.8, seed 0", "온도 0.8, 시드 0"),
        configuration={"model": {"hidden_size": 256, "attention": ("softmax",) * 5, "tie": True, "kv": None}},
        machine=(("CPU", "two slow cores"),),
        reproduce=(Command(line="yeoul demo --out runs/demo", what=Text("All of it", "전체를")),),
        next_steps=(Command(line='yeoul generate runs/demo/linear "옛날 옛적에"'),),
        notes=(Text("Nothing else ran.", "다른 작업은 없었습니다."),),
    )


def test_writes_a_self_contained_page_and_markdown_with_its_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    html, markdown = write_report(example(), tmp_path)
    page, text = html.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")
    names = ["bits-per-byte", "loss-align", "loss-pretrain", "speed-cache", "speed-decode", "speed-prefill"]
    files = sorted(p.name for p in (tmp_path / "report").iterdir())
    assert files == sorted([f"{name}.svg" for name in names] + [f"{name}.ko.svg" for name in names])
    assert all(f"(report/{name}.svg)" in text for name in names)
    korean = (tmp_path / "report.ko.md").read_text(encoding="utf-8")
    assert all(f"(report/{name}.ko.svg)" in korean for name in names)
    assert page.count("<svg") == len(names) and not re.search(r'(src|href)="(?!#)', page)
    assert not re.search(r"(?<!xmlns=\")(?<!xlink=\")https?://", page)
    seen(page, "en")
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["report", "report.html", "report.ko.md", "report.md"]  # no temporary


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_page_is_in_one_language_at_a_time(language):
    """Whatever is shown, captions and the plots' labels too, is in the language that was chosen."""
    pytest.importorskip("matplotlib")
    page = render_html(example(), plots.all_plots(example()))
    assert foreign(page, language) == []
    words = " ".join(text for _, text in seen(page, language))
    expected = {
        "en": ("From softmax to linear time", "peak memory", "nats per token", "validation", "without attention",
               "Loss against tokens read", "Loss curves of pretrain, align", "swipe sideways", "All of it",
               "Do it again"),
        "ko": ("소프트맥스에서 선형 시간으로", "최대 메모리", "토큰당 내트", "검증", "어텐션 없이",
               "읽은 토큰에 따른 손실", "손실 곡선: 사전 학습, 정렬(align)", "옆으로 밀면", "전체를", "다시 해 보기"),
    }[language]  # fmt: skip
    assert [text for text in expected if text not in words] == []


@pytest.mark.parametrize("language", ["en", "ko"])
def test_markdown_is_in_one_language(language):
    text = render_markdown(example(), plots.all_plots(example()), language=language)
    names = r"^\| (hidden_size|attention|tie|kv|CPU) .*$|^## .*: \w+$"  # settings, and the machine's
    shown = re.sub(names, "", re.sub(r"(?s)(````?)\w+\n.*?\1\n|\(report/[^)]*\)", "", text), flags=re.M)
    words = re.findall(r"[가-힣]+" if language == "en" else r"[A-Za-z]+", shown)
    assert [word for word in words if word not in NAMES] == []


def test_every_table_scrolls_in_a_box_of_its_own_that_says_so():
    page = render_html(example(), [])
    boxes = re.findall(r'<div class="scroll"[^>]*><table>.*?</table></div>\s*<p class="more"', page, flags=re.S)
    assert len(boxes) == page.count("<table") == 3


def test_labels_of_a_plot_are_text_in_either_language():
    pytest.importorskip("matplotlib")
    panels = {panel.name: panel for plot in plots.all_plots(example()) for panel in plot.panels}
    decode = panels["speed-decode"]
    assert ">context, tokens</text>" in decode.in_language("en") == decode.svg
    assert ">문맥, 토큰</text>" in decode.in_language("ko") and ">DiJiang</text>" in decode.in_language("ko")
    assert 'lang="ko">문맥, 토큰</tspan>' in plots.inline(decode)
    # three beside each other on a wide page and none too small on a phone: 9 points at least, on 358 pixels
    for panel in panels.values():
        width = float(re.search(r'viewBox="0 0 ([\d.]+)', panel.svg)[1])  # points
        assert 9 * 358 / width >= 9, panel.name


def test_text_from_a_model_is_escaped():
    page = render_html(example(), [])
    assert "<b>토끼" not in page and "&lt;b&gt;토끼&lt;/b&gt;" in page
    assert "````text\n옛날 옛적에 & 거북이가 ```살았어요```.\n````" in render_markdown(example(), [])


def test_plots_are_valid_deterministic_and_inline_without_clashing_ids():
    pytest.importorskip("matplotlib")
    first, second = plots.all_plots(example()), plots.all_plots(example())
    assert [p.panels for p in first] == [p.panels for p in second]
    ids: list[str] = []
    for panel in (panel for plot in first for panel in plot.panels):
        root = ET.fromstring(plots.inline(panel))
        own = [e.get("id") for e in root.iter() if e.get("id")]
        targets = {v[1:] for e in root.iter() for k, v in e.attrib.items() if k.endswith("href") and v[0] == "#"}
        assert targets <= set(own)
        ids += own
    assert len(ids) == len(set(ids))


def test_without_matplotlib_there_is_one_clear_sentence_and_the_tables(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not plots.available()
    html, markdown = write_report(example(), tmp_path)
    for path, sentences in ((html, (NO_PLOTS.en, NO_PLOTS.ko)), (markdown, (NO_PLOTS.en,))):
        text = path.read_text(encoding="utf-8").replace("&#39;", "'")
        assert all(sentence in text for sentence in sentences) and "0.950" in text


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
    assert "파라미터가 410만 개인" in korean and "토큰 120만 개로 1분 40초 동안" in korean and "0.910비트" in korean
    assert "토큰 20만 개(사전 학습의 17%)로 40초 동안" in korean and "교사보다 0.040비트(4.4%) 높습니다" in korean
    assert "6.1배 빠르고" in korean and "28분의 1" in korean and "512토큰 이하" in korean
    assert "선형 부분 없이 +0.100, 어텐션 없이 +0.650" in korean and "60%" in korean and "25%" in korean


def test_summary_admits_what_did_not_work():
    report = example()
    slow = [replace(p, decode=100.0) if p.role == "converted" else p for p in report.speeds if p.context < 4096]
    words = in_words(replace(report, speeds=tuple(slow)))
    assert "decodes at 0.51 times the speed of softmax" in words and "still the faster" not in words
    assert "2.0배 느리고" in in_korean(replace(report, speeds=tuple(slow)))


def test_an_empty_report_is_a_page():
    empty = Report()
    assert "From softmax to linear time" in render_html(empty, [])
    assert highlights(empty) == [] and in_words(empty) == in_korean(empty) == "" and plots.speed(empty) is None
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
        (korean_duration, 0.4, "0.4초"), (korean_duration, 75, "1분 15초"), (korean_duration, 3600, "1시간"),
        (korean_number, 9_999, "9,999"), (korean_number, 123_456, "12.3만"), (korean_number, 4_100_000, "410만"),
        (korean_number, 5_885_059_072, "58.9억"), (korean_rate, 1234, "초당 1,234토큰"),
        (as_text, ("softmax",) * 5, "softmax × 5"), (as_text, {"a": [1, 2]}, "a: 1, 2"), (as_text, None, "–"),
    ],
)  # fmt: skip
def test_values_in_words(function, value, words):
    assert function(value) == words


def test_gap_is_against_the_teacher():
    report = example()
    assert [gap(report, row) for row in report.models] == ["", "+0.040", "+0.140", "+0.690"]


def test_fixed_words_of_the_page_are_known():
    """A head or a heading that a template or a plot adds and the table of words lacks would stay English."""
    source = (resources.files("yeoul.report") / "templates" / "report.html.j2").read_text(encoding="utf-8")
    heads = re.findall(r'"([^"]+)"', " ".join(re.findall(r"call table\((.*?)\) %}", source)))
    said = re.findall(r'\bt\("([^"]+)"\)', source)
    assert len(heads) > 15 and len(said) > 5
    assert [word for word in (*heads, *said) if word not in KOREAN and word not in NAMES] == []
