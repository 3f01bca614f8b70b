import pytest
import torch

from yeoul.data.batch import IGNORE
from yeoul.errors import UserError
from yeoul.evaluate.recall import continuation_logprobs, score_recall
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.text.framing import Framing


class Letters:
    """A tokenizer with one token a character."""

    alphabet = "abcdefghij ?."
    vocab_size, eos_id, bos_id, pad_id, unk_id = 14, 13, None, 0, None
    stop_ids, framing = (13,), Framing(separator=13)

    def token_bytes(self, token):
        return self.decode([token]).encode()

    def encode(self, text, *, bos=False, eos=False):
        return [self.alphabet.index(c) for c in text]

    def decode(self, ids, *, skip_special=True):
        return "".join(self.alphabet[i] for i in ids if i < 13)

    def stream(self):
        return LetterStream(self)


class LetterStream:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def push(self, token):
        return self.tokenizer.decode([token])

    def flush(self):
        return ""


def model() -> Decoder:
    torch.manual_seed(0)
    return Decoder(ModelConfig(vocab_size=14, hidden_size=16, num_layers=1, num_heads=2, max_position_embeddings=64))


def items() -> list[dict[str, str]]:
    return [{"prompt": f"{c}{d} is? ".replace("s", "d"), "answer": f"{c}{d}"} for c in "abcd" for d in "efg"]


def test_logprobs_do_not_depend_on_the_company():
    net, tokenizer = model().eval(), Letters()
    pairs = [("abc", "de"), ("a", "bcdefg"), ("abcdefgh ", "i")]
    with torch.inference_mode():
        together = continuation_logprobs(net, tokenizer, pairs)
        alone = [continuation_logprobs(net, tokenizer, [pair])[0] for pair in pairs]
        ids = torch.tensor([tokenizer.encode("abcde")])
        logs = net(ids).log_softmax(-1)[0]
    assert together == pytest.approx(alone, rel=1e-5)
    assert together[0] == pytest.approx(float(logs[2, 3] + logs[3, 4]), rel=1e-5)


def test_scores_from_the_first_token_that_the_continuation_changes():
    class Joining(Letters):
        """Joins "ab" into one token, across the border of prompt and continuation too."""

        def encode(self, text, *, bos=False, eos=False):
            return [13 if c == "X" else self.alphabet.index(c) for c in text.replace("ab", "X")]

    net = model().eval()
    with torch.inference_mode():
        (value,) = continuation_logprobs(net, Joining(), [("ca", "b")])
        logs = net(torch.tensor([[2, 13]])).log_softmax(-1)[0]
    assert value == pytest.approx(float(logs[0, 13]), rel=1e-5)


def test_a_model_that_learned_the_answers_scores_one_by_both_methods():
    net, tokenizer = model().train(), Letters()
    rows = [tokenizer.encode(i["prompt"] + i["answer"]) for i in items()]
    ids = torch.tensor(rows)
    labels = ids[:, 1:].clone()
    labels[:, : len(items()[0]["prompt"]) - 1] = IGNORE
    untrained = score_recall(net, tokenizer, items(), method="rank", candidates=3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(250):
        loss = torch.nn.functional.cross_entropy(net(ids[:, :-1]).flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ranked = score_recall(net, tokenizer, items(), method="rank", candidates=3)
    said = score_recall(net, tokenizer, items(), method="generate", batch_size=5)
    assert ranked.accuracy == said.accuracy == 1.0 and ranked.stderr == 0.0
    assert ranked.chance == pytest.approx(1 / 3) and said.chance == 0.0
    assert ranked.questions == 12 and ranked.skipped == 0 and untrained.accuracy < 1.0
    assert net.training


def test_questions_that_do_not_fit_are_counted_and_none_is_an_error():
    net, tokenizer = model(), Letters()
    long = {"prompt": "a" * 70, "answer": "b"}
    assert score_recall(net, tokenizer, [*items(), long]).skipped == 1
    with pytest.raises(UserError, match="fits into 64 tokens"):
        score_recall(net, tokenizer, [long])
    with pytest.raises(UserError, match="two different answers"):
        score_recall(net, tokenizer, items()[:1])


def test_candidates_answer_questions_of_the_same_kind():
    from yeoul.evaluate.recall import _candidates  # which answers compete is not in the result

    pool = [("x. what colour?", " red"), ("y. what colour?", " blue"), ("z. what colour?", " red")]
    pool += [(f"{n}. how many?", f" {n}") for n in range(5)]
    groups = _candidates(pool, pool, 3, seed=0)
    assert groups[0][:2] == [" red", " blue"] and groups[1][:2] == [" blue", " red"]
    assert all(len(set(group)) == 3 for group in groups)
    assert all(c.strip().isdigit() for group in groups[3:] for c in group)


def test_only_the_first_are_asked_and_a_blank_joins_prompt_and_answer():
    from yeoul.evaluate.recall import _joined  # how prompts are joined is not in the result

    result = score_recall(model(), Letters(), items(), ask=5, candidates=2)
    assert result.questions == 5 and result.chance == pytest.approx(0.5)
    assert _joined("답:", "둘") == " 둘" and _joined("답: ", "둘") == "둘"
