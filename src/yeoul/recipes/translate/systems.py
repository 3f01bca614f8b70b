"""Who translates: a model here, or one behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import hashlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from yeoul import runtime
from yeoul.errors import UserError
from yeoul.infer.params import SamplingParams
from yeoul.recipes.fingerprint import fingerprint
from yeoul.recipes.translate.prompts import pattern, turns

if TYPE_CHECKING:
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

    Loadable = str | Path | tuple[Decoder, Tokenizer | None]
    """A folder, a run, an id on the hub or the address of an endpoint; or what `yeoul.load` gave."""


class System(Protocol):
    """Translates sentences greedily.

    Attributes:
        name: for people.
    """

    name: str

    @property
    def fingerprint(self) -> str:
        """What decides its translations, beside the prompts."""
        ...

    def translate(self, sources: Sequence[str]) -> list[str]:
        """One line for each."""
        ...


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What all systems are told.

    Attributes:
        examples: (source, target) in each prompt.
        languages: of the sources and of the translations.
        chat: by the chat template.
        max_tokens: of a translation.
    """

    examples: tuple[tuple[str, str], ...]
    languages: tuple[str, str]
    chat: bool
    max_tokens: int

    def messages(self, source: str) -> list[dict[str, str]]:
        """The turns of a chat that ends with the question."""
        return turns([*self.examples, (source, "")], self.languages)


def first_line(text: str) -> str:
    """What counts of an answer: its first line that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


class LocalSystem:
    """A model here."""

    def __init__(self, name: str, model: Decoder, tokenizer: Tokenizer, asking: Asking, batch_size: int) -> None:
        self.name, self.model, self.tokenizer, self.asking, self.batch_size = name, model, tokenizer, asking, batch_size

    @property
    def fingerprint(self) -> str:
        """See `System`."""
        return fingerprint(self.model, self.tokenizer)

    def translate(self, sources: Sequence[str]) -> list[str]:
        """See `System`."""
        from yeoul.infer.engine import run
        from yeoul.text.chat import render_ids

        asking = self.asking
        params = SamplingParams(temperature=0, max_tokens=asking.max_tokens, stop=() if asking.chat else ("\n",))
        prompts: list[str | list[int]] = [
            render_ids(self.tokenizer, asking.messages(source), add_generation_prompt=True) if asking.chat
            else pattern(asking.examples, source, asking.languages)
            for source in sources
        ]  # fmt: skip
        results = run(self.model, self.tokenizer, prompts, params, batch_size=self.batch_size)
        return [first_line(result.text) for result in results]


class Endpoint:
    """A model behind `POST ADDRESS/chat/completions`, as OpenAI's API and llama.cpp's and vLLM's servers have it.

    Args:
        address: such as "http://localhost:8000/v1", with "#MODEL" behind it where the server wants a name.
        asking: what it is told.
        timeout: seconds for an answer.
    """

    def __init__(self, address: str, asking: Asking, timeout: float) -> None:
        self.name = address
        self.base, _, self.model = address.partition("#")
        self.asking, self.timeout = asking, timeout

    @property
    def fingerprint(self) -> str:
        """See `System`."""
        return hashlib.sha256(self.name.encode()).hexdigest()

    def translate(self, sources: Sequence[str]) -> list[str]:
        """See `System`.

        Raises:
            UserError: the endpoint is not reached, refuses, or answers something else.
        """
        return [first_line(self._answer(source)) for source in sources]

    def _answer(self, source: str) -> str:
        body = {
            "model": self.model or "default", "messages": self.asking.messages(source), "temperature": 0,
            "max_tokens": self.asking.max_tokens,
        }  # fmt: skip
        key = runtime.endpoint_key()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        where = f"{self.base.rstrip('/')}/chat/completions"
        request = urllib.request.Request(where, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                answer: Any = json.loads(response.read())
            return str(answer["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            reason = " ".join(error.read(500).decode("utf-8", "replace").split())
            raise UserError(f"the endpoint answers {error.code}: {reason or error.reason}", where) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise UserError(f"the endpoint cannot be reached: {reason}", where) from None
        except (ValueError, LookupError, TypeError):
            raise UserError("the endpoint's answer is no chat completion", where) from None


def is_endpoint(model: Loadable) -> bool:
    """Whether a system is an address."""
    return isinstance(model, str) and model.startswith(("http://", "https://"))
