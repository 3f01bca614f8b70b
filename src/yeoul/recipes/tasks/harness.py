"""Our models as lm-eval sees them: log-likelihoods, rolling ones, generated texts.

Requests are cut into tokens as lm-eval's class for transformers does it, so that both give the same figures for the
same softmax model. What requests begin with alike is read once, by layers of any kind (`score_continuations`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import model_registry
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as error:
    raise ImportError("standard tasks need lm-eval: pip install 'yeoul[eval]'") from error

from yeoul.errors import UserError
from yeoul.evaluate.continuations import Likelihood, score_continuations
from yeoul.infer.engine import run
from yeoul.infer.params import SamplingParams
from yeoul.recipes.loading import load
from yeoul.text.chat import encode_written, render_text

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

NAME = "yeoul"
"""What our class is called in `lm_eval --model NAME`."""
BATCH_SIZE = 8
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Settings of `generation_kwargs` that `SamplingParams` has, too."""


class YeoulLM(TemplateLM):
    """A model of ours for lm-eval: `lm_eval.simple_evaluate(model=YeoulLM("runs/demo"), tasks=[...])`.

    Texts begin as those of the model do (`yeoul.text.framing`).

    Args:
        path: what `yeoul.load` takes; or what it gave, a model with its tokenizer.
        device, dtype, adapter: as in `yeoul.load`.
        batch_size: rows at a time; "auto" is 8.
        max_batch_size: of lm-eval's command line; an upper bound of `batch_size`.
        max_length: tokens that are read of a text; None: the model's own length.
        share_prefixes: read what several requests begin with once.

    Raises:
        UserError: as `yeoul.load`; no tokenizer; a tokenizer without a token that a text could begin with.
    """

    def __init__(
        self,
        path: str | Path | tuple[Decoder, Tokenizer | None],
        *,
        device: str | None = None,
        dtype: str = "auto",
        adapter: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        share_prefixes: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(path, tuple):
            self._path, (self._model, tokenizer) = "model", path
        else:
            self._path = str(path)
            self._model, tokenizer = load(path, device=device or "auto", dtype=dtype, adapter=adapter)
        if tokenizer is None:
            raise UserError("the model has no tokenizer, so no task can be given to it", self._path)
        self._tokenizer: Tokenizer = tokenizer
        self._device = self._model.device
        wanted = BATCH_SIZE if batch_size is None or str(batch_size).startswith("auto") else int(batch_size)
        self.batch_size = min(wanted, max_batch_size or wanted)
        self._max_length, self._share = max_length, share_prefixes
        self._written = False  # texts are what a chat template wrote
        ends = (token for token in (tokenizer.bos_id, tokenizer.eos_id) if token is not None)
        begin = tokenizer.framing.begin or tuple(ends)[:1]
        if not begin:
            raise UserError("the tokenizer has no token that a text could begin with", self._path)
        self._begin = begin

    # -- what lm-eval asks for

    @property
    def max_length(self) -> int:
        """Tokens that are read of a text."""
        return self._max_length or self._model.config.max_position_embeddings

    @property
    def max_gen_toks(self) -> int:
        """New tokens of an answer, where a task does not say."""
        return 256

    @property
    def eot_token_id(self) -> int:
        """The token behind a text."""
        return self._tokenizer.eos_id if self._tokenizer.eos_id is not None else self._begin[-1]

    @property
    def prefix_token_id(self) -> int:
        """The token before a text of which all is scored."""
        return self._begin[-1]

    @property
    def tokenizer_name(self) -> str:
        """Tells tokenizers apart where lm-eval keeps requests."""
        return f"{NAME}-{self._tokenizer.fingerprint[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Source of the template that `apply_chat_template` uses; None where it is not wanted."""
        return self._tokenizer.chat_template if chat_template else None

    def get_model_info(self) -> dict[str, Any]:
        """For the record of a run."""
        return {
            "model_path": self._path, "model_num_parameters": self._model.num_parameters(),
            "model_dtype": str(self._model.dtype).removeprefix("torch."),
        }  # fmt: skip

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text; without its system message where the template knows none."""
        self._written = True
        try:
            return render_text(self._tokenizer, chat_history, add_generation_prompt=add_generation_prompt)
        except UserError:
            others = [message for message in chat_history if message["role"] != "system"]
            if len(others) == len(chat_history):
                raise
            return render_text(self._tokenizer, others, add_generation_prompt=add_generation_prompt)

    # -- tokens

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, begun as the model's texts are unless that is not wanted, or a chat template did it."""
        tokenizer = self._tokenizer
        ids = encode_written(tokenizer, string) if self._written else tokenizer.encode(string)
        begin = tokenizer.framing.begin
        if add_special_tokens is False or tuple(ids[: len(begin)]) == begin:
            return ids
        return tokenizer.framing.prompt(ids)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As lm-eval: white space goes to the continuation, whose tokens are those behind as many as the context has.

        Where the tokenizer joins both so that none is left, they are cut where their tokens begin to differ.
        """
        before, behind = super()._encode_pair(context, continuation)
        if not behind:
            whole = self.tok_encode(context + continuation)
            cut = min(len(commonprefix((before, whole))), len(whole) - 1)
            before, behind = whole[:cut] or list(self._begin), whole[cut:]
        return before, behind

    # -- requests

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        # before an empty context, lm-eval puts one token
        pairs = [(list(self._begin) if texts[0] == "" and before == [self.prefix_token_id] else before, behind)
                 for texts, before, behind in requests]  # fmt: skip
        found = [(logprob, greedy) for logprob, greedy in self._score(pairs, disable_tqdm)]
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return found

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]], quiet: bool) -> list[Likelihood]:
        if not pairs:
            return []
        with _bar(len(pairs), "Scoring", quiet) as done:
            return score_continuations(
                self._model, pairs, batch_size=self.batch_size, longest=self.max_length, share=self._share,
                progress=done,
            )  # fmt: skip

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the model's length where they are longer.

        lm-eval's class for transformers reads the begin token twice and scores the second one, where the tokenizer
        puts it before a text; this one scores the text alone, as that one does with `add_bos_token=False`.
        """
        pairs, owners = list[tuple[list[int], list[int]]](), list[int]()
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                pairs.append(make_disjoint_window(window))
                owners.append(number)
        sums = [0.0] * len(requests)
        for owner, found in zip(owners, self._score(pairs, disable_tqdm), strict=True):
            sums[owner] += found.logprob
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, up to the first stop string; equal prompts are read once.

        Raises:
            UserError: a setting of `generation_kwargs` that there is not here, such as beams.
        """
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        answers = [""] * len(requests)
        with _bar(len(requests), "Generating", disable_tqdm) as done:
            for numbers in groups.values():
                params = self._sampling(requests[numbers[0]].args[1])
                room = max(self.max_length - params.max_tokens, 1)
                prompts = [self.tok_encode(requests[number].args[0])[-room:] for number in numbers]
                results = run(self._model, self._tokenizer, prompts, params, batch_size=self.batch_size)
                for number, result in zip(numbers, results, strict=True):
                    answers[number] = result.text
                    self.cache_hook.add_partial("generate_until", requests[number].args, result.text)
                done(len(numbers))
        return answers

    def _sampling(self, given: Mapping[str, Any]) -> SamplingParams:
        """`generation_kwargs` in our words; settings that change nothing as they stand are let pass."""
        settings = dict(normalize_gen_kwargs(dict(given), self.max_gen_toks))
        stops = tuple(stop for stop in settings.pop("until") if stop)
        most, draws = settings.pop("max_gen_toks"), settings.pop("do_sample")
        known = {name: settings.pop(name) for name in SAMPLING if settings.get(name) is not None}
        known["temperature"] = known.get("temperature", 1.0) if draws else 0.0
        idle = {"num_beams": 1, "use_cache": True, "num_return_sequences": 1}
        strange = [name for name, value in settings.items() if value is not None and value != idle.get(name)]
        if strange:
            fix = f"leave it out; known are until, max_gen_toks, do_sample, {', '.join(SAMPLING)}"
            raise UserError(f"generation with {strange[0]} is not known", "generation_kwargs", fix)
        seed = int(torch.randint(2**31, ())) if draws else None  # lm-eval has seeded torch
        return SamplingParams(max_tokens=most, stop=stops, seed=seed, **({"top_p": 1.0} | known))


@contextmanager
def _bar(total: int, what: str, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error."""
    with tqdm(total=total, desc=what, disable=quiet) as bar:
        yield lambda count: bar.update(count) and None


def register() -> None:
    """Makes lm-eval know our class by its name."""
    if NAME not in model_registry:
        model_registry.register(NAME, target=YeoulLM)
