"""Recall of pairs by models whose memory is known, with words of three kinds of tokenizers."""

from __future__ import annotations

import random
import re

import pytest
import torch
from torch import nn

from yeoul.data.batch import Batch
from yeoul.errors import UserError
from yeoul.evaluate import perplexity
from yeoul.evaluate.associative import Material, RecallGrid, ask, mqar_questions, needle_questions, recall_rows
from yeoul.evaluate.words import line_break, text_ids, whole_words
from yeoul.text.tokenizer import Tokenizer

KOREAN = "강가 마을 아이 물가 하늘 구름 바람 나무 사과 노래 시장 학교 친구 겨울 여름 가을 아침 저녁 바다 이야기".split()
ENGLISH = "river village child water heaven cloud wind tree apple song market school friend winter summer".split()


def sentences(words: list[str]) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(words, k=8)) + ".\n" + " ".join(rng.choices(words, k=5)) for _ in range(400)]


@pytest.fixture(scope="module", params=["bpe", "unigram", "space-before", "byte-level"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "byte-level":
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers, trainers

        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(sentences(ENGLISH), trainer)
        backend.save(str(folder / "tokenizer.json"))
        return Tokenizer.load(folder)
    from yeoul.text.training import TokenizerConfig, train_tokenizer

    kind = "unigram" if request.param == "unigram" else "bpe"
    config = TokenizerConfig(model_type=kind, vocab_size=350, add_dummy_prefix=request.param == "space-before")
    train_tokenizer(sentences(KOREAN), config, folder)
    return Tokenizer.load(folder)


def test_words_stay_one_piece_in_any_text(tokenizer):
    words = whole_words(tokenizer)
    assert len(words) >= 12 and len(set(words)) == len(words)
    start = tokenizer.encode("a.\n")
    texts = {word: tokenizer.decode([*start, word])[len("a.\n") :] for word in words}
    assert all(text[0] == " " and text[1:].isalpha() and len(text) > 2 for text in texts.values())
    order = random.Random(1).choices(words, k=50)
    assert tokenizer.encode("a.\n" + "".join(texts[word] for word in order)) == start + order
    known = KOREAN + ENGLISH
    assert {text[1:] for text in texts.values()} <= {word[:n] for word in known for n in range(2, len(word) + 1)}


def test_the_line_break_is_what_the_tokenizer_makes_of_it(tokenizer):
    ids = line_break(tokenizer)
    assert ids and tokenizer.decode([*tokenizer.encode("a"), *ids, *tokenizer.encode("a")]).split("\n")[0] == "a"


def test_text_is_taken_without_padding_and_special_tokens(tokenizer):
    ids = torch.tensor([[305, 306, 307, 308], [309, tokenizer.eos_id, 311, 312]])
    padded = Batch(input_ids=ids, labels=ids, seq_ids=torch.tensor([[0, 0, 0, -1], [0, 0, 1, 1]]))
    assert text_ids(tokenizer, [padded, padded], 8) == [305, 306, 307, 309, 311, 312, 305, 306]
    with pytest.raises(UserError, match="no text"):
        text_ids(tokenizer, [], 8)


class Recaller(nn.Module):
    """Foretells what followed the last earlier occurrence of the token, at most `reach` positions back; else noise."""

    def __init__(self, vocab: int, reach: int | None = None, known: bool = True) -> None:
        super().__init__()
        self.output_weight = nn.Parameter(torch.zeros(vocab, 1))
        self.reach, self.known, self.lengths = reach, known, []

    def hidden(self, ids):
        self.lengths.append(tuple(ids.shape))
        logits = torch.rand(*ids.shape, self.output_weight.shape[0])
        for b in range(ids.shape[0] if self.known else 0):
            row = ids[b].tolist()
            for t, token in enumerate(row):
                first = 0 if self.reach is None else max(0, t - self.reach)
                earlier = [s for s in range(first, t) if row[s] == token]
                if earlier:
                    logits[b, t, row[earlier[-1] + 1]] = 5
        return logits

    def unembed(self, hidden):
        return hidden


@pytest.fixture
def material(tokenizer) -> Material:
    rng = random.Random(3)
    text = [token for line in sentences(["b", "c", "d"]) for token in tokenizer.encode(line)]
    rng.shuffle(text)
    return Material(tokenizer, text[:800])


def test_a_model_that_recalls_is_always_right_and_noise_is_at_chance(tokenizer, material):
    asked = mqar_questions(material, context=300, pairs=(2, 4), distances=(0, 100), questions=200)
    found = ask(Recaller(tokenizer.vocab_size), asked, batch_tokens=500)
    assert [(c.pairs, c.distance, c.items) for c in found.cells] == [
        (2, 0, 100),
        (2, 100, 100),
        (4, 0, 50),
        (4, 100, 50),
    ]
    for cell in found.cells:
        assert cell.exact == cell.choice == 1 and cell.exact_stderr == 0 and cell.questions == 200
    noise = ask(Recaller(tokenizer.vocab_size, known=False), asked)
    for cell in noise.cells:
        assert abs(cell.choice - 1 / cell.pairs) < 4 * cell.choice_stderr and cell.exact < 0.05


def test_needles_too(tokenizer, material):
    asked = needle_questions(material, context=300, lengths=(100, 300), items=10)
    assert [(c.length, c.depth) for c in asked.cells] == [(n, d) for n in (100, 300) for d in (0.1, 0.5, 0.9)]
    found = ask(Recaller(tokenizer.vocab_size), asked)
    assert all(c.exact == c.choice == 1 and c.questions == 10 for c in found.cells)
    assert found.cells[0].chance == 1 / min(16, len(material.words) - 1)
    for cell in asked.cells:
        item = cell.items[0]
        ids, key, value = item.ids, item.ids[-1], item.values[0]
        where = ids.index(key)
        assert len(ids) == cell.length and item.places == (len(ids) - 1,) and item.candidates[0] == value
        assert ids[where + 1] == value and ids.count(key) == 2 and ids.count(value) == 1
        assert cell.distance == len(ids) - 1 - (where + 1)
        assert where / cell.length == pytest.approx(cell.depth, abs=0.1)
    assert [c.beyond_window for c in asked.cells] == [True, False, False, True, True, False]


def test_pairs_come_twice_in_two_orders_with_text_between(tokenizer, material):
    (cell,) = mqar_questions(material, context=300, pairs=(4,), distances=(70,), window=64).cells
    line = material.newline
    head = len(material.begin) + 4 + len(line)
    for item in cell.items:
        ids = list(item.ids)
        assert len(ids) == cell.length
        stored = ids[head : head + 8]
        second = ids[-8:]
        pairs = dict(zip(stored[::2], stored[1::2], strict=True))
        assert dict(zip(second[::2], second[1::2], strict=True)) == pairs and len(set(stored)) == 8
        assert [ids[place] for place in item.places] == second[::2] and list(item.values) == second[1::2]
        assert sorted(item.candidates) == sorted(pairs.values())
        between = ids[head + 8 : -8]
        assert between[: len(line)] == between[-len(line) :] == line and len(between) == 70 + 2 * len(line)
        assert not set(between) & set(stored)
    assert len({item.ids for item in cell.items}) == len(cell.items)
    again = mqar_questions(material, context=300, pairs=(4,), distances=(70,), window=64)
    assert again.cells == (cell,)


def test_a_window_forgets_what_is_beyond_it(tokenizer, material):
    asked = mqar_questions(material, context=300, window=30, pairs=(4,), distances=(0, 29, 100), questions=100)
    assert [cell.beyond_window for cell in asked.cells] == [False, True, True]
    found = ask(Recaller(tokenizer.vocab_size, reach=29), asked)
    assert found.cells[0].exact == 1 and found.cells[1].exact < 0.1 and found.cells[2].exact < 0.1
    teacher = ask(Recaller(tokenizer.vocab_size), asked)
    assert found.share_of(teacher, beyond_window=True).exact < 0.1 < found.share_of(teacher).exact < 0.45
    assert found.mean("exact", beyond_window=True) < 0.1
    whole = teacher.share_of(teacher)
    assert whole.exact == whole.choice == 1 and whole.cells == 3 and whole.excluded == 0


def test_cells_where_the_teacher_guesses_are_left_out(tokenizer, material):
    asked = mqar_questions(material, context=300, pairs=(4,), distances=(0, 100), questions=100)
    near, whole = (ask(Recaller(tokenizer.vocab_size, reach=reach), asked) for reach in (50, None))
    share = whole.share_of(near)
    assert share.cells == 1 and share.excluded == 1 and share.exact == 1
    blind = RecallGrid(kind="mqar", window=64, cells=near.cells[1:], left_out=())
    nothing = blind.share_of(blind)
    assert nothing.exact is None and nothing.choice is None and nothing.excluded == 1


def test_what_does_not_fit_is_left_out_and_said(tokenizer, material):
    asked = mqar_questions(material, context=200, pairs=(4, 500), distances=(0, 100, 2048))
    assert len(asked.cells) == 2 and len(asked.left_out) == 4
    assert "more than the context of 200" in asked.left_out[0]
    asked = mqar_questions(material, context=10_000, pairs=(500,), distances=(0,))
    assert not asked.cells and "whole words, but 1000 are needed" in asked.left_out[0]
    assert "held-out text has 800" in mqar_questions(material, context=10_000, distances=(2048,)).left_out[0]
    assert "held-out text has 800" in needle_questions(material, context=10_000, lengths=(2048,)).left_out[0]


def test_a_tokenizer_without_words_is_an_error(tokenizer, monkeypatch):
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda self, texts: [[0] for _ in texts])
    assert whole_words(tokenizer) == []
    with pytest.raises(UserError, match="only 0 pieces of the tokenizer are whole words"):
        Material(tokenizer, [1] * 50)


def test_batches_and_chunks_change_nothing(tokenizer, material, monkeypatch):
    from models import make

    asked = mqar_questions(material, context=120, pairs=(4,), distances=(0, 50), questions=64)
    model = make("softmax")
    model.model.embed_tokens.weight.data = torch.randn(tokenizer.vocab_size, 64)
    whole = ask(model.train(), asked)
    assert model.training
    monkeypatch.setattr(perplexity, "CHUNK_ELEMENTS", 2 * tokenizer.vocab_size)
    monkeypatch.setattr(perplexity, "LEAST_ROWS", 1)
    assert ask(model, asked, batch_tokens=1) == whole


def test_rows_say_at_their_end_what_their_beginning_said(tokenizer):
    text = [token for line in sentences(KOREAN)[:200] for token in tokenizer.encode(line)]
    made = lambda seed: recall_rows(tokenizer, text, rows=6, length=160, pairs=4, seed=seed)  # noqa: E731
    rows = made(1)
    assert [len(row) for row in rows] == [160] * 6 and rows == made(1) and rows != made(2)
    words = set(whole_words(tokenizer))
    for row in rows[::2]:  # pairs of words, the same at both ends
        asked = [row[place : place + 2] for place in range(152, 160, 2)]
        assert all(set(pair) <= words for pair in asked)
        assert all(any(row[place : place + 2] == pair for place in range(30)) for pair in asked)
    if tokenizer.unk_id is None or tokenizer.unk_id not in tokenizer.encode("0123456789"):
        for row in rows[1::2]:
            numbers = re.findall(r"\d{2,6}", tokenizer.decode(row))
            assert numbers and sorted(numbers[: len(numbers) // 2]) == sorted(numbers[len(numbers) // 2 :])


def test_no_rows_where_there_is_too_little(tokenizer):
    text = tokenizer.encode(sentences(KOREAN)[0])
    assert recall_rows(tokenizer, text, rows=3, length=10_000) == []
    assert recall_rows(tokenizer, [], rows=3, length=100) == []
