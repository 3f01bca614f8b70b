"""Standard tasks: our class beside lm-eval's own for transformers, tasks by name, from folders and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import yeoul
from folders import with_ends, write_small_folder
from yeoul import cli
from yeoul.errors import UserError
from yeoul.model.checkpoint import load_config
from yeoul.recipes.tasks.run import KOREAN, TasksConfig, evaluate_tasks

pytest.importorskip("lm_eval", reason="standard tasks need the extra [eval]")

ITEMS = {file.stem: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
         for file in sorted(KOREAN.glob("*.jsonl"))}  # fmt: skip
SHAPE = dict(max_position_embeddings=512, initializer_range=0.3, tie_embeddings=False)
WRITE = """\
task: write
custom_dataset: !function write.items
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: ""
generation_kwargs:
  until: ["다.", "\\n\\n"]
  max_gen_toks: 12
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
ROLLING = """\
task: rolling
custom_dataset: !function write.items
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
"""
LOADER = """\
def items(**_):
    import datasets
    texts = ["여울은 물살이 빠르다. " * 3, "달이 밝은 밤이었다.", "아이들이 강가에서 놀았다. " * 40]
    return {"test": datasets.Dataset.from_list([{"text": text} for text in texts])}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A softmax model that transformers reads as a Llama, whose texts begin with <s>."""
    texts = [str(value) for items in ITEMS.values() for item in items for value in item.values()]
    made = write_small_folder(tmp_path_factory.mktemp("softmax"), texts, vocab_size=1400, **SHAPE)
    assert json.loads((made / "config.json").read_text())["model_type"] == "llama"
    return with_ends(made, before="<s>")


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [str(value) for items in ITEMS.values() for item in items for value in item.values()]
    return write_small_folder(tmp_path_factory.mktemp("linear"), texts, vocab_size=1400, attention=("hybrid",), **SHAPE)


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder of tasks."""
    tasks = tmp_path_factory.mktemp("tasks")
    (tasks / "write.yaml").write_text(WRITE, encoding="utf-8")
    (tasks / "rolling.yaml").write_text(ROLLING, encoding="utf-8")
    (tasks / "write.py").write_text(LOADER, encoding="utf-8")
    return tasks


def theirs(folder: Path, **settings: Any) -> Any:
    """lm-eval's own class for models of transformers."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4, **settings)


def likelihoods(result: Any) -> list[tuple[str, int, list[float], list[bool]]]:
    """Of every question, by task."""
    return [
        (task, sample["doc_id"], [float(r[0][0]) for r in sample["resps"]], [bool(r[0][1]) for r in sample["resps"]])
        for task, samples in result.samples.items()
        for sample in sorted(samples, key=lambda sample: sample["doc_id"])
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("fewshot", "limit"), [(None, 8), (2, 3)])
def test_transformers_class_of_lm_eval_finds_the_same(folder: Path, fewshot: int | None, limit: int) -> None:
    """The same log-likelihoods of every choice, the same greedy marks, the same figures with their errors."""
    config = TasksConfig(fewshot=fewshot, limit=limit)
    expected = evaluate_tasks(theirs(folder), "yeoul_korean", config)
    found = evaluate_tasks(folder, "yeoul_korean", config, device="cpu", dtype="float32")
    assert [score.questions for score in found.tasks] == [limit] * len(ITEMS)
    assert [score.questions for score in found.groups] == [limit * len(ITEMS)]
    ours, others = likelihoods(found), likelihoods(expected)
    assert len(ours) == sum(score.questions for score in found.tasks)
    for mine, other in zip(ours, others, strict=True):
        assert mine[:2] == other[:2] and mine[3] == other[3]
        assert mine[2] == pytest.approx(other[2], abs=1e-4, rel=0)
    assert found.tasks == expected.tasks and found.groups == expected.groups
    assert {metric.name for metric in found.tasks[2].metrics} == {"acc", "acc_norm", "f1"}
    assert all(metric.stderr is not None for score in found.tasks for metric in score.metrics if metric.name == "acc")


def test_chat_templates_are_read_as_transformers_reads_them(folder: Path, tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '</s>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    model, tokenizer = yeoul.load(folder, device="cpu", dtype="float32")
    assert tokenizer is not None
    chatty = tokenizer.with_template(template)
    chatty.save(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = TasksConfig(fewshot=1, limit=2, apply_chat_template=True, system_instruction="짧게 답하시오.")
    expected = evaluate_tasks(theirs(tmp_path), "yeoul_copa,yeoul_kmmlu", config)
    found = evaluate_tasks((model, chatty), "yeoul_copa,yeoul_kmmlu", config)
    for mine, other in zip(likelihoods(found), likelihoods(expected), strict=True):
        assert mine[2] == pytest.approx(other[2], abs=1e-4, rel=0)
    asked = found.samples["yeoul_copa"][0]["arguments"][0][0]
    assert asked.startswith("<s>system: 짧게 답하시오.</s>\n") and asked.endswith("assistant: ")


def test_texts_that_go_on_and_whole_texts(folder: Path, own_tasks: Path) -> None:
    """generate_until with stop strings; rolling log-likelihoods in windows, without scoring the begin token."""
    found = evaluate_tasks(folder, str(own_tasks), device="cpu", dtype="float32")
    expected = evaluate_tasks(theirs(folder, add_bos_token=False), str(own_tasks))
    rolling = [[sample["resps"][0][0] for sample in result.samples["rolling"]] for result in (found, expected)]
    assert rolling[0] == pytest.approx(rolling[1], abs=1e-3, rel=0) and min(rolling[0]) < -500
    answers = [sample["resps"][0][0] for sample in found.samples["write"]]
    model, tokenizer = yeoul.load(folder, device="cpu", dtype="float32")
    prompts = [sample["arguments"][0][0] for sample in found.samples["write"]]
    plain = yeoul.generate(model, tokenizer, prompts, max_tokens=12, temperature=0.0)
    assert answers == [text.split("다.")[0].split("\n\n")[0] for text in plain] and any(answers)


def test_settings_of_generation(linear: Path) -> None:
    from yeoul.recipes.tasks.harness import YeoulLM

    lm = YeoulLM(linear, device="cpu")
    greedy = lm._sampling({"until": "\n", "do_sample": False, "temperature": 0.7, "num_beams": 1})
    assert (greedy.temperature, greedy.stop, greedy.max_tokens, greedy.top_p) == (0.0, ("\n",), 256, 1.0)
    drawn = lm._sampling({"do_sample": True, "temperature": 0.7, "top_k": 5, "max_new_tokens": 3})
    assert (drawn.temperature, drawn.top_k, drawn.max_tokens) == (0.7, 5, 3) and drawn.seed is not None
    with pytest.raises(UserError, match="num_beams"):
        lm._sampling({"num_beams": 4})


def test_an_empty_context_and_a_continuation_that_is_swallowed(folder: Path) -> None:
    from lm_eval.api.instance import Instance

    from yeoul.recipes.tasks.harness import YeoulLM

    lm = YeoulLM(folder, device="cpu", dtype="float32")
    requests = [Instance("loglikelihood", {}, ("", "여울은 물살이 빠르다."), 0)]
    hf = theirs(folder)
    assert lm.loglikelihood(requests, disable_tqdm=True)[0][0] == pytest.approx(
        hf.loglikelihood(requests, disable_tqdm=True)[0][0], abs=1e-4
    )
    assert lm.prefix_token_id == hf.prefix_token_id == load_config(folder).bos_id
    pieces = [lm._tokenizer.piece(token) for token in range(lm._tokenizer.vocab_size)]
    long = max((piece for piece in pieces if piece.isalpha()), key=len)
    before, behind = lm._encode_pair(long[:-1], long[-1])
    assert behind and before + behind == lm.tok_encode(long)


@pytest.mark.slow
def test_hub_tasks_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own definition of a task of KoBEST, its data from here instead of the hub."""
    import datasets

    asked: list[Any] = []

    def load_dataset(path: str, name: str | None = None, **_: Any) -> Any:
        asked.append((path, name))
        rows = datasets.Dataset.from_list(ITEMS["copa"])
        return datasets.DatasetDict({split: rows for split in ("train", "validation", "test")})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = evaluate_tasks(folder, "kobest_copa", device="cpu", dtype="float32")
    assert asked == [("skt/kobest_v1", "copa")]
    own = evaluate_tasks(folder, "yeoul_copa", device="cpu", dtype="float32")
    assert [each[1:] for each in likelihoods(hub)] == [each[1:] for each in likelihoods(own)]
    assert hub.tasks[0].metrics == own.tasks[0].metrics


def test_command_line(linear: Path, own_tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(linear), "--tasks", "yeoul_wic", "--limit", "4", "--device", "cpu", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    score = values["tasks"]["yeoul_wic"]
    assert score["questions"] == 4 and 0 <= score["metrics"]["acc"]["value"] <= 1
    assert score["metrics"]["acc"]["stderr"] is not None and values["model"] == str(linear)
    given = [str(linear), "--tasks", str(KOREAN / "copa.yaml"), "--tasks", f"{own_tasks},yeoul_haerae"]
    assert cli.main(["evaluate", *given, "--limit", "2", "--device", "cpu"]) == 0
    table = capsys.readouterr().out
    assert "+-" in table and all(name in table for name in ("yeoul_copa", "yeoul_haerae", "write", "rolling"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "yeoul_kobest"], "no task"),
        (["--tasks", "nothing.yaml"], "no such task file"),
        (["--tasks", "."], "no task in this folder"),
        (["--tasks", "yeoul_copa", "--recall", "3"], "evaluation of their own"),
        (["--tasks", "yeoul_copa", "--limit", "0"], "at least 1"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: list[str], words: str, linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", str(linear), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_lm_eval_command_knows_our_class_and_tasks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from yeoul.lm_eval import YeoulLM, main

    given = f"--model yeoul --model_args path={folder},dtype=float32 --device cpu --tasks yeoul_sentineg --limit 3"
    monkeypatch.setattr("sys.argv", ["lm_eval", *given.split()])
    assert main() == 0
    assert "yeoul_sentineg" in capsys.readouterr().out
    from lm_eval.api.registry import get_model

    assert get_model("yeoul") is YeoulLM


def test_items_are_whole_and_balanced() -> None:
    """Every right answer is there, no item twice, and no place is right much more often than another."""
    keys = {"kmmlu": "answer", "haerae": "answer"}
    for name, items in ITEMS.items():
        assert 20 <= len(items) <= 40
        assert len({json.dumps(item, ensure_ascii=False, sort_keys=True) for item in items}) == len(items)
        places = [str(item[keys.get(name, "label")]) for item in items]
        counts = [places.count(place) for place in set(places)]
        assert max(counts) - min(counts) <= 2, (name, counts)
    assert {len(set(item[letter] for letter in "ABCD")) for item in ITEMS["kmmlu"]} == {4}
    assert all(f"{item['answer']} " in item["query"] for item in ITEMS["haerae"])


def test_without_the_extra_a_sentence_says_so(linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(UserError, match="need lm-eval.*eval"):
        evaluate_tasks(linear, "yeoul_copa")


def test_items_are_in_the_wheel() -> None:
    import tomllib

    root = Path(__file__).resolve().parents[2]
    kept = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    shipped = {file for pattern in kept["yeoul"] for file in (root / "src" / "yeoul").glob(pattern)}
    assert {*KOREAN.glob("*.jsonl"), *KOREAN.glob("*.yaml")} <= shipped
