"""`yeoul runs` and `yeoul report`: what runs left behind, in a list and on pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.test_standing import GIVEN
from report.reading import foreign
from yeoul import cli
from yeoul.errors import UserError
from yeoul.recipes.run_report import compared, leave_report, report_runs, run_report
from yeoul.recipes.runs import list_runs, summarize


def made(folder: Path, verb: str = "finetune", *, before: float = 0.5, after: float = 0.75, **settings: Any) -> Path:
    """A run as it lies in its folder: settings, metrics, and unless `after` is NaN its record."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = {"finetune": {"method": "lora", "task": "classify"}, "pretrain": {"preset": "3m"}}[verb]
    (folder / "config.yaml").write_text(json.dumps(mark | settings), encoding="utf-8")
    lines: list[dict[str, Any]] = [
        {"kind": "train", "step": step, "tokens": 100 * step, "loss": 1 / step, "seconds": 1.5 * step}
        for step in range(1, 6)
    ]
    lines.append({"kind": "val", "step": 5, "tokens": 500, "loss": 0.4, "accuracy": 0.25})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if after == after:
        record = {
            "task": "classify", "steps": 5, "tokens": 500, "seconds": 7.5, "parameters": 1000, "trained": 10,
            "before": {"accuracy": before, "loss": 0.9}, "after": {"accuracy": after, "loss": 0.4},
            "machine": [["processor", "of the record"]],
        }  # fmt: skip
        (folder / f"{verb}.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


@pytest.mark.parametrize("verb", GIVEN)
def test_a_run_leaves_a_page(home, tmp_path, capsys, verb):
    out = tmp_path / "runs" / "the run"
    argv = [verb, *GIVEN[verb](home), "--out", out, "--device", "cpu", "--dtype", "float32"]
    assert cli.main(list(map(str, argv))) == 0
    assert f"The report is in {out / 'report.html'}" in " ".join(capsys.readouterr().out.split("\n"))
    page = (out / "report.html").read_text(encoding="utf-8")
    for language in ("en", "ko"):
        assert foreign(page, language) == []
    assert "yeoul " + verb in page
    assert {"report.md", "report.ko.md"} <= {path.name for path in out.iterdir()}
    (found,) = list_runs(tmp_path / "runs")
    assert (found.folder, found.verb, found.state, found.share) == (out, verb, "finished", 1.0)
    assert found.tokens > 0
    assert cli.main(["runs", str(tmp_path / "runs")]) == 0
    assert "the run" in capsys.readouterr().out


def test_no_page_where_none_is_wanted(home, tmp_path):
    argv = ["pretrain", *GIVEN["pretrain"](home), "--out", tmp_path / "run", "--device", "cpu", "--no-report"]
    assert cli.main(list(map(str, argv))) == 0
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_page_that_cannot_be_written_takes_nothing_from_the_run(tmp_path, monkeypatch):
    folder, said = made(tmp_path / "run"), []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("yeoul.report.page.write_text", full)
    leave_report(folder, said.append)
    assert len(said) == 1 and "disk is full" in said[0] and f"yeoul report {folder}" in said[0]


def test_runs_are_listed_newest_first_and_not_within_one_another(tmp_path, capsys):
    import os

    made(tmp_path / "middle" / "checkpoints" / "inner")
    for age, name in ((30, "a/old"), (10, "한글 이름"), (20, "middle")):
        folder = made(tmp_path / name)
        for path in (folder, *folder.iterdir()):
            os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    (tmp_path / "nothing" / "deeper").mkdir(parents=True)
    found = list_runs(tmp_path)
    assert [str(run.folder.relative_to(tmp_path)) for run in found] == ["한글 이름", "middle", "a/old"]
    assert (found[0].score, found[0].value, found[0].before) == ("accuracy", 0.75, 0.5)
    assert cli.main(["runs", str(tmp_path), "--json"]) == 0
    assert [run["tokens"] for run in json.loads(capsys.readouterr().out)] == [500] * 3
    assert cli.main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    from rich.cells import cell_len

    places = {cell_len(line[: line.index("accuracy")]) for line in lines[1:]}
    assert len(lines) == 4 and len(places) == 1 and "accuracy 0.5 → 0.75" in lines[1]
    with pytest.raises(UserError, match="no such folder"):
        list_runs(tmp_path / "elsewhere")


def test_damaged_records_are_no_reason_to_fail(tmp_path):
    folder = made(tmp_path / "run")
    for text in ("", "[]", '{"before": 3, "after": {"accuracy": "much"}}', "{"):
        (folder / "finetune.json").write_text(text, encoding="utf-8")
        summary = summarize(folder)
        assert summary is not None and summary.value is None


def test_one_run_says_what_it_cost_and_gave(tmp_path):
    report = run_report(made(tmp_path / "run", lr=0.001))
    assert "500 tokens in 7.5 s; 10 of 1,000 parameters" in report.lead.en
    assert "accuracy went from 0.5000 to 0.7500" in report.lead.en and "정확도: 0.5000 → 0.7500" in report.lead.ko
    ((_, table),) = report.sections[0].tables
    assert ("accuracy", "0.5000", "0.7500") in table.rows
    assert {curve.unit for curve in report.curves} == {"nats per text"}
    assert report.machine == (("processor", "of the record"),)
    assert report.configuration["yeoul finetune"]["lr"] == 0.001


def test_a_run_that_is_not_finished_shows_its_last_validation(tmp_path):
    report = run_report(made(tmp_path / "run", after=float("nan")))
    assert "stopped" in report.lead.en and "accuracy is 0.2500" in report.lead.en


def test_runs_are_compared_by_what_they_have_in_common(tmp_path):
    folders = [made(tmp_path / "low", after=0.6, lr=0.1), made(tmp_path / "high", after=0.8, lr=0.2)]
    report = compared(folders)
    assert "0.8000, of high" in report.lead.en
    results, different = (section.tables[0][1] for section in report.sections)
    assert [row[0] for row in results.rows] == ["low", "high"]
    assert different.head == ("setting", "low", "high") and different.rows == (("lr", "0.1", "0.2"),)
    assert [curve.name for curve in report.curves] == ["low", "high"]


def test_long_names_are_numbered(tmp_path):
    report = compared([made(tmp_path / f"a-rather-long-name-{number}") for number in range(3)])
    assert [curve.name for curve in report.curves] == ["1", "2", "3"]
    assert report.sections[0].tables[0][1].rows[1][0] == "2: a-rather-long-name-1"


def test_names_that_are_alike_are_told_apart_by_their_folders(tmp_path):
    report = compared([made(tmp_path / "one" / "run"), made(tmp_path / "two" / "run")])
    assert [curve.name for curve in report.curves] == ["one/run", "two/run"]
    with pytest.raises(UserError, match="twice"):
        compared([tmp_path / "one" / "run"] * 2)


def test_several_are_written_to_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [made(tmp_path / name) for name in "ab"]
    page = report_runs(folders)
    assert page == Path("report/report.html") and page.is_file()
    for runs, words in (([], "0 runs"), ([tmp_path / "a"] * 9, "9 runs"), ([tmp_path], "no run")):
        with pytest.raises(UserError, match=words):
            report_runs(runs)
