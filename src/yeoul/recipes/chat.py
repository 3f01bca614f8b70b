"""A conversation with a model: its messages, what of them fits into the context, a screen, and files of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from yeoul.errors import UserError
from yeoul.files import write_text
from yeoul.infer.params import SamplingParams
from yeoul.recipes.options import Say, silent
from yeoul.units import count, rate, size

if TYPE_CHECKING:
    from yeoul.infer.engine import GenerationResult, TextStream
    from yeoul.infer.speculation import Speculation
    from yeoul.infer.state_file import KeptState
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

Message = dict[str, str]
"""{"role", "content"}."""
Screen = Callable[[list[Message], str | None], str | None]
"""Given the conversation up to a question, and its answer or None before there is one: why to refuse it, or None."""


class Reply:
    """An answer while it is written: an iterator over its pieces, to be handed to `Chat.keep` at its end.

    Under a screen the pieces are empty, and the last one is the whole answer if it passes.

    Attributes:
        asked: the question.
        text: the whole answer; "" before its end, and where it is refused.
        result: of the generation; None before its end, and where the answer is refused.
    """

    def __init__(self, asked: Message, stream: TextStream, passes: Callable[[str], bool] | None) -> None:
        self.asked, self._stream, self._passes = asked, stream, passes
        self.text = ""
        self.result: GenerationResult | None = None

    def cancel(self) -> None:
        """End the answer behind the next token, so that the cache stays whole."""
        self._stream.cancel()

    def __iter__(self) -> Iterator[str]:
        for piece in self._stream:
            yield piece if self._passes is None else ""
        result = self._stream.result
        assert result is not None
        if self._passes is not None:
            if not self._passes(result.text):
                return
            yield result.text
        self.text, self.result = result.text, result


class Chat:
    """One conversation: its messages, its settings and the session that keeps the cache between turns.

    `chat(question)` gives the answer as a text.

    Args:
        model, tokenizer: of `yeoul.load`; a tokenizer without a chat template gets the default one.
        params: how answers are drawn.
        system: what the model is told first.
        screen: asked before and after each answer, which is then shown only when it is whole.
        speculation: guesses tokens ahead, for the same answers; None does not.
        state: what the model remembers of a text before the conversation.
        say: is told what happens beside the answers: their cost, what is forgotten or refused.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        params: SamplingParams | None = None,
        system: str | None = None,
        *,
        screen: Screen | None = None,
        speculation: Speculation | None = None,
        state: KeptState | None = None,
        say: Say | None = None,
    ) -> None:
        from yeoul.infer.engine import Session
        from yeoul.text.chat import ensure_template

        self.model, self.tokenizer, self.system = model, ensure_template(tokenizer), system
        self.params = params or SamplingParams()
        self.screen, self.say = screen, say or silent
        self.session = Session(model, self.tokenizer, speculation, state)
        self.messages: list[Message] = []
        self.said_too_long = False

    def __call__(self, question: str) -> str:
        """The answer; "" where the question or the answer is refused, or the question is empty."""
        reply = self.ask(question)
        if reply is None:
            return ""
        for _ in reply:
            pass
        self.keep(reply)
        return reply.text

    def ask(self, question: str) -> Reply | None:
        """The answer to be iterated over and then to be given to `keep`; None where there is nothing to answer.

        Raises:
            UserError: the question alone is too long for the model.
        """
        if not question.strip():
            return None
        asked = {"role": "user", "content": question}
        turns = [*self.messages, asked]
        if self._refused(turns, None):
            return None
        stream = self.session.stream(self._fitting_prompt(turns), self.params)
        turns = [*self.messages, asked]  # the oldest may be forgotten now
        passes = None if self.screen is None else lambda text: not self._refused(turns, text)
        return Reply(asked, stream, passes)

    def keep(self, reply: Reply) -> None:
        """Make a question and its answer, whose pieces are all read, a part of the conversation."""
        if reply.result is None:  # refused
            return
        self.say(self._cost(reply.result))
        self._say_when_too_long(reply.result)
        if reply.text.strip():
            self.messages += [reply.asked, {"role": "assistant", "content": reply.text}]
        else:
            self.say("The answer was empty; the question is forgotten.")

    def _say_when_too_long(self, result: GenerationResult) -> None:
        """Once: the conversation is longer than any text on which linear attention was trained."""
        from yeoul.infer.cost import beyond_training

        said = beyond_training(self.model.config, result.prompt_tokens + len(result.ids))
        if said is not None and not self.said_too_long:
            self.said_too_long = True
            self.say(said)

    def _refused(self, messages: list[Message], answer: str | None) -> bool:
        reason = self.screen(self._whole(messages), answer) if self.screen is not None else None
        if reason is not None:
            what = "The question is not answered" if answer is None else "The answer is not shown"
            self.say(f"{what}: {reason}. It is forgotten.")
        return reason is not None

    def _whole(self, messages: list[Message]) -> list[Message]:
        """The conversation with what the model is told before it."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *messages]

    def _fitting_prompt(self, messages: list[Message]) -> list[int]:
        """Ids of the conversation; its oldest turns are forgotten where the model's context is too short."""
        from yeoul.text.chat import render_ids

        limit, forgotten = self.model.config.bounded_context, 0
        before = 0 if self.session.state is None else len(self.session.state.ids)
        room = 0 if limit is None else limit - before - min(self.params.max_tokens, limit // 4)
        while True:
            ids = render_ids(self.tokenizer, self._whole(messages), add_generation_prompt=True)
            if limit is None or len(ids) <= room or len(messages) < 3:
                break
            messages, forgotten = messages[2:], forgotten + 1
        if forgotten:
            self.messages, are = messages[:-1], "is" if forgotten == 1 else "are"
            self.say(
                f"The conversation outgrew the model's context; the oldest {count(forgotten, 'turn')} {are} forgotten."
            )
        return ids

    def _cost(self, result: GenerationResult) -> str:
        used, limit = result.prompt_tokens + len(result.ids), self.model.config.bounded_context
        context = f"{count(used, 'token')} of context" if limit is None else f"{used:,} of {limit:,} tokens of context"
        constant = ", constant" if self.model.config.is_linear else ""  # however long the conversation
        cache = f"cache {size(result.cache_bytes)}{constant}"
        parts = [rate(result.tokens_per_second), context, cache]
        if self.session.reused:
            parts.append(f"{count(self.session.reused, 'token')} from the cache")
        if result.finish_reason == "cancelled":
            parts.append("stopped")
        elif result.finish_reason == "length":
            parts.append("cut by --max-tokens" if len(result.ids) == self.params.max_tokens else "context full")
        return " · ".join(parts)

    # -- what is changed of it

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages = []
        self.say("A new conversation.")

    def undo(self) -> None:
        """Forget the last question and its answer.

        Raises:
            UserError: there is none.
        """
        if not self.messages:
            raise UserError("there is nothing to undo")
        asked = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        self.messages = self.messages[: asked[-1] if asked else 0]
        self.say("The last question and its answer are forgotten.")

    def set_system(self, text: str) -> None:
        """What the model is told first from the next answer on; "" for nothing."""
        self.system = text or None
        self.say("The new system prompt applies from the next answer on." if text else "The system prompt is removed.")

    def set_temperature(self, value: float) -> None:
        """How varied answers are; 0 always takes the most likely token.

        Raises:
            UserError: it is negative or not finite.
        """
        self.params = replace(self.params, temperature=value)
        self.say(f"Temperature {value:g}.")

    def set_adapter(self, name: str) -> None:
        """Answer with the adapter of this name, or of this folder; "none" for the base model, "" to list them.

        Raises:
            UserError: there is no such adapter.
        """
        from yeoul.adapt.lora import api as lora
        from yeoul.adapt.lora.peft_files import adapter_name

        if name and name != "none" and name not in lora.adapter_names(self.model) and Path(name).expanduser().is_dir():
            path, name = Path(name).expanduser(), adapter_name(name)
            lora.load_adapter(self.model, path, name)
        if name:
            lora.set_adapter(self.model, None if name == "none" else name)
            if self.session.state is not None:
                raise UserError("the state is of another adapter", "/adapter", "start again without --state")
            self.session = type(self.session)(self.model, self.tokenizer)  # the cache is the other one's
        active = lora.active_adapter(self.model)
        names = [f"{known} (active)" if known == active else known for known in lora.adapter_names(self.model)]
        alone = "" if active else ", the base model answers"
        self.say(f"Adapters: {', '.join(names) or 'none'}{alone}.")

    # -- files

    def save(self, path: Path) -> None:
        """Write the conversation as one JSON line."""
        line = json.dumps({"messages": self._whole(self.messages)}, ensure_ascii=False) + "\n"
        write_text(path, line)
        self.say(f"Saved to {path}.")

    def load(self, path: Path) -> None:
        """Go on with the first conversation of a file.

        Raises:
            UserError: there is none.
        """
        from yeoul.data.conversations import Conversation, read_conversations

        record = next(iter(read_conversations(path)))
        if not isinstance(record, Conversation):
            raise UserError("the file holds plain text, not a conversation", record.where)
        messages = [{"role": message["role"], "content": message["content"]} for message in record.messages]
        while messages[-1]["role"] != "assistant":  # nobody answered
            messages.pop()
        self.system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
        self.messages = messages
        answers = sum(message["role"] == "assistant" for message in messages)
        self.say(f"Loaded from {record.where}: {count(answers, 'answer')}.")
