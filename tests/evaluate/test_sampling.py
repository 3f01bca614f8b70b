"""What a setting gives: the model's side against the definition, the text's side against sacrebleu and by hand."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch

from infer.conftest import ByteTokenizer
from yeoul.errors import UserError
from yeoul.evaluate.korean import KoreanScore
from yeoul.evaluate.nucleus import SHARES, nucleus
from yeoul.evaluate.sampling import (
    GREEDY,
    Continuation,
    Prompt,
    Reader,
    Setting,
    SettingScore,
    choices,
    judge_perplexity,
    judged_text,
    recalls,
    score_setting,
    self_bleu,
)
from yeoul.infer.engine import run
from yeoul.infer.sample import shape_logits
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder

SHAPE: dict[str, Any] = dict(
    vocab_size=259, hidden_size=32, num_heads=4, num_layers=2, max_position_embeddings=64, window=5,
    initializer_range=0.2,
)  # fmt: skip


class Tokens(ByteTokenizer):
    """Bytes, and the names of special tokens."""

    def spelled(self, ids: list[int]) -> str:
        return "".join(f"<{i}>" for i in ids)


def written(text: str, *, ended: bool = True) -> Continuation:
    return Continuation(text=text, ids=list(text.encode()), ended=ended)


@pytest.fixture(scope="module", params=["softmax", "hybrid"])
def reader(request: pytest.FixtureRequest) -> Reader:
    torch.manual_seed(1)
    model = Decoder(ModelConfig(attention=(request.param,), **SHAPE)).eval()
    return Reader(model, Tokens(), batch_size=2)  # type: ignore[arg-type]


@torch.no_grad()
def test_choices_are_those_of_the_definition(reader: Reader) -> None:
    """Text by text, token by token, from the logits of the whole sequence."""
    setting = Setting(temperature=0.7, top_k=9, top_p=0.8)
    pairs = [([5, 6, 7], [8, 9]), ([1], [30, 31, 32, 33]), ([2, 2], []), ([4] * 6, [250])]
    found = choices(reader, pairs, setting)
    nats, entropy, kept, likeliest = 0.0, 0.0, 0, 0
    for before, after in pairs:
        logits = reader.model(torch.tensor([[*before, *after]]))[0].double()
        for place, token in enumerate(after, len(before) - 1):
            row = logits[place]
            nats -= float(row.log_softmax(-1)[token])
            likeliest += int(row.argmax()) == token
            p = shape_logits(row[None].float(), setting.params(max_tokens=1, seed=0)).double().softmax(-1)[0]
            kept += int((p > 0).sum())
            entropy -= float((p[p > 0] * p[p > 0].log2()).sum())
    assert found.tokens == 7 and found.likeliest == likeliest and found.kept == kept
    assert found.nats == pytest.approx(nats, rel=1e-5) and found.entropy == pytest.approx(entropy, rel=1e-4)


def test_what_the_model_writes_itself_is_scored(reader: Reader) -> None:
    prompts = [Prompt(text="가나"), Prompt(text="abc", answer="zz")]
    ids = [reader.tokenizer.encode(p.text) for p in prompts]

    def write(setting: Setting) -> list[Continuation]:
        params = [setting.params(max_tokens=12, seed=row, ignore_eos=True) for row in range(2)]
        return [Continuation.of(r) for r in run(reader.model, reader.tokenizer, ids, params)]

    greedy = write(GREEDY)
    hot = Setting(temperature=1.5)
    first = score_setting(GREEDY, prompts, ids, greedy, greedy, reader)
    second = score_setting(hot, prompts, ids, write(hot), greedy, reader, judge=reader)
    assert (first.greedy, first.kept, first.entropy, first.prefix) == (1.0, 1.0, 0.0, 12.0)
    assert first.perplexity is not None and second.perplexity is not None and first.perplexity < second.perplexity
    assert second.greedy < 1 and second.kept > 200 and 0 < second.entropy < 8.1 and second.prefix < 12
    assert first.recall == 0.0 and second.tokens == 24 and not second.ended
    assert second.accuracy == second.judge_perplexity and first.accuracy == first.perplexity
    assert SettingScore.from_dict(second.as_dict()) == second


def test_a_judge_with_the_same_tokens_reads_the_same_perplexity(reader: Reader) -> None:
    """Text that is its tokens and back: the second reading, from text, is the first, from ids."""
    prompts = [Prompt(text="one "), Prompt(text="two")]
    texts = [written("three four"), written(" five")]
    ids = [reader.tokenizer.encode(p.text) for p in prompts]
    own = choices(reader, [(i, w.ids) for i, w in zip(ids, texts, strict=True)], GREEDY)
    found = judge_perplexity(reader, prompts, texts)
    assert found == pytest.approx(math.exp(own.nats / own.tokens), rel=1e-5)
    assert judge_perplexity(reader, prompts, [written(""), written("")]) is None


def test_a_prompt_too_long_for_the_judge(reader: Reader) -> None:
    longest = reader.model.config.bounded_context
    if longest is None:
        pytest.skip("a linear model reads any length")
    with pytest.raises(UserError, match="prompt 1 is longer than the context of the second model"):
        judge_perplexity(reader, [Prompt(text="a" * (longest + 1))], [written("b")])


@pytest.mark.parametrize(
    ("prompt", "text", "ended", "judged"),
    [
        ("옛날 옛적", "에 살았다", True, "옛적에 살았다"),
        ("옛날 ", "살았다", True, "살았다"),
        ("옛날", " 살았다", True, " 살았다"),
        ("옛날", " 어느 친구이", False, " 어느 "),
        ("옛날", "에", False, ""),
        ("", "친구가 왔다", True, "친구가 왔다"),
    ],
)
def test_words_at_both_ends_are_judged_whole_or_not(prompt: str, text: str, ended: bool, judged: str) -> None:
    assert judged_text(prompt, written(text, ended=ended)) == judged


def test_an_answer_counts_only_word_for_word_and_at_once() -> None:
    prompt = Prompt(text="...", answer="모자")
    assert recalls(prompt, written(" 모자입니다"))
    assert not recalls(prompt, written(" 그 모자")) and not recalls(prompt, written("모 자"))


def test_self_bleu_is_sacrebleus() -> None:
    from sacrebleu.metrics import BLEU

    texts = ["옛날에 토끼가 살았다.", "옛날에 여우가 살았다.", "the cat sat"]
    bleu = BLEU(tokenize="char", effective_order=True)
    wanted = [bleu.sentence_score(text, [t for t in texts if t != text]).score for text in texts]
    assert self_bleu([*texts, "  "]) == pytest.approx(sum(wanted) / 3)
    assert self_bleu(["같은 글입니다", "같은 글입니다"]) == pytest.approx(100)
    assert self_bleu(["only one"]) == 100.0


def test_without_sacrebleu_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match=r"sacrebleu.*yeoul\[eval\].*--no-self-bleu"):
        self_bleu(["a", "b"])


def test_settings_name_themselves() -> None:
    assert str(Setting(temperature=0.7, top_k=40, top_p=0.9, min_p=0.05)) == (
        "temperature 0.7, top-k 40, top-p 0.9, min-p 0.05"
    )
    assert (str(GREEDY), str(Setting(temperature=1))) == ("greedy", "temperature 1")
    with pytest.raises(UserError, match="--top-p"):
        Setting(temperature=1, top_p=0).params(max_tokens=1, seed=0)


def test_a_lower_p_keeps_fewer_tokens(reader: Reader) -> None:
    """By the definition: the fewest likeliest tokens that together reach p."""
    shown = nucleus(reader.model, reader.tokenizer, "옛날 ")
    with torch.no_grad():
        logits = reader.model(torch.tensor([reader.tokenizer.encode("옛날 ")]))[0, -1].double()
    ordered = logits.softmax(-1).sort(descending=True).values
    for share, kept, mass in shown.kept:
        wanted = 259 if share == 1 else int((ordered.cumsum(0) < share - 1e-7).sum()) + 1
        assert kept == wanted and mass == pytest.approx(float(ordered[:wanted].sum()), rel=1e-4)
        assert mass >= share - 1e-6
    counts = [kept for _, kept, _ in shown.kept]
    assert [share for share, *_ in shown.kept] == list(SHARES) and counts == sorted(counts) and counts[0] < counts[-1]
    assert [c.probability for c in shown.candidates] == sorted((c.probability for c in shown.candidates), reverse=True)
    assert shown.candidates[0].probability == pytest.approx(float(ordered[0]), rel=1e-4)


def test_a_score_without_tokens_has_no_accuracy() -> None:
    assert SettingScore(setting=GREEDY, tokens=0, ended=1.0, perplexity=None, korean=KoreanScore()).accuracy is None
