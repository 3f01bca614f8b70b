"""The task chat: conversations, instructions and plain text, by the next token."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Literal

from yeoul.errors import UserError
from yeoul.recipes.finetune.data import chosen_context, show_loss_mask
from yeoul.recipes.finetune.task import GeneratingTask, Outcome, TaskSetup, Validate
from yeoul.units import count

if TYPE_CHECKING:
    from yeoul.data.batch import Batch
    from yeoul.data.conversations import Record
    from yeoul.data.examples import Example, ExampleLoader
    from yeoul.data.record_files import Records
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.train.loss import Objective

LONGEST = 1024
"""Tokens of a row when no context is given."""
ENCODED_TOGETHER = 1000
"""Documents that the tokenizer is given at once."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """What --task chat reads and learns."""

    train_on: Literal["assistant", "all"] = "assistant"
    """Tokens of a conversation that are learned: those of the assistant, or all; none of messages with "weight": 0.
    Plain text is learned whole."""
    packing: bool | None = None
    """Pack whole examples into rows of --context tokens, none seeing another; otherwise a row is one example, and a
    batch has rows of similar length. When not given, data that is all plain text is packed."""
    question_column: str | None = None
    """Column of tables (key of JSON objects) with the question, for data in no known format."""
    answer_column: str | None = None
    """Column with the answer, likewise."""

    def __post_init__(self) -> None:
        if (self.question_column is None) != (self.answer_column is None):
            missing = "--answer-column" if self.answer_column is None else "--question-column"
            raise UserError("question and answer need a column each", missing, "give this one too")


@dataclass
class Material:
    """What was read.

    Attributes:
        examples: conversations and texts as tokens.
        conversations, texts: how many of each.
        skipped: records left out; complaint: about the first of them.
    """

    examples: list[Example] = field(default_factory=list)
    conversations: int = 0
    texts: int = 0
    skipped: int = 0
    complaint: str = ""


class ChatTask(GeneratingTask):
    """Conversations and plain texts; nothing is trained beside the model."""

    name = "chat"
    packed = True

    def __init__(self, setup: TaskSetup, options: ChatOptions) -> None:
        super().__init__(setup)
        self.options = options
        self._known_parts: dict[str, list[tuple[str, bool]]] = {}

    def check_data(self) -> None:
        """Every record; of plain text the first document."""
        for spec in (self.data, self.examples.val_data):
            for name, plain in self._parts(spec) if spec is not None else ():
                if plain:
                    next(self._documents(name), None)
                else:
                    deque(self._records(name), maxlen=0)

    def prepare(self, model: Decoder, tokenizer: Tokenizer) -> None:
        """Reads the data, renders it, divides it, and fits it into the context."""
        options, val_data = self.examples, self.examples.val_data
        self.model, self.tokenizer = model, tokenizer
        self.given_template = tokenizer.chat_template
        material = self.material = self._read(self.data)
        train, val = material.examples, list["Example"]()
        if val_data is not None:
            val = self._read(val_data).examples
        elif options.val_fraction:
            key = lambda example: (example.ids.tobytes(), example.trained.tobytes())  # noqa: E731
            train, val = options.held_out(train, key)
        self.packing = not material.conversations if self.options.packing is None else self.options.packing
        self.context = self._context(train)
        self.train, self.cut, self.dropped = self._fitted(train, self.data)
        self.val = self._fitted(val, val_data or self.data)[0] if val else []
        self.epoch_batches = self._batches_of_an_epoch()
        self.tokens = self._template_tokens()

    def identity(self) -> dict[str, object]:
        """What the flags do not say: the tokens themselves, which change with the template."""
        return {"examples": _digest(self.train), "validation": _digest(self.val), "packed": self.packing}

    def introduce(self) -> list[str]:
        """Sizes, what was left out, and the first example."""
        material = self.material
        kinds = [count(number, name) for number, name in
                 ((material.conversations, "conversation"), (material.texts, "text")) if number]  # fmt: skip
        tokens = sum(len(example.ids) for example in self.train)
        learned = sum(int(example.trained[1:].sum()) for example in self.train)
        held_out = f"{count(len(self.val), 'example')} for validation" if self.val else "none for validation"
        how = "packed into rows" if self.packing else "one per row"
        lines = [f"Data: {' and '.join(kinds)}, {held_out}; {tokens:,} tokens, {learned:,} of them trained, {how}."]
        if material.skipped:
            lines.append(f"Left out: {count(material.skipped, 'unusable record')}. The first: {material.complaint}")
        if self.cut:
            lines.append(f"Truncated to {self.context:,} tokens: {count(self.cut, 'example')}.")
        if self.dropped:
            lines.append(f"Left out, with nothing to learn within that length: {count(self.dropped, 'example')}.")
        if material.conversations and self.given_template is None:
            lines.append("The model has no chat template; the default one is saved with it.")
        lines.append(self._begins())
        return [*lines, show_loss_mask(self.tokenizer, self.train[0].ids.tolist(), self.train[0].trained.tolist())]

    def _begins(self) -> str:
        """How the sequences begin, which is the chat template's to decide for conversations."""
        begin = list(self.tokenizer.framing.begin)
        without = sum(example.ids[: len(begin)].tolist() != begin for example in self.train)
        if not without:
            return self.tokenizer.begins
        shown = self.tokenizer.spelled(begin)
        return f"{without:,} of {len(self.train):,} sequences lack {shown}, because the chat template leaves it out."

    def loader(self) -> ExampleLoader:
        """From the beginning of the first epoch."""
        from yeoul.data.examples import ExampleLoader

        train = self.training
        return ExampleLoader(
            self.train, batch_size=train.batch_size, context=self.context, seed=train.seed, packing=self.packing,
            pad_id=self._pad_id,
        )  # fmt: skip

    def objective(self) -> Objective:
        """Cross-entropy of the learned tokens."""
        from yeoul.train.loss import language_model_objective

        return language_model_objective

    def validate(self) -> Validate | None:
        """Loss, perplexity and bits per byte of the learned tokens that were held out."""
        from yeoul import runtime
        from yeoul.recipes.token_data import validation

        if not self.val:
            return None
        dtype = runtime.resolve_dtype(self.training.dtype, self.model.device)
        return validation(self.model, self._held_out, self.tokenizer, dtype)

    def _held_out(self) -> Iterable[Batch]:
        from yeoul.data.examples import example_batches

        return example_batches(
            self.val, batch_size=self.training.rows, context=self.context, packing=self.packing,
            pad_id=self._pad_id,
        )  # fmt: skip

    @property
    def verb(self) -> str:
        """A model that has seen conversations is talked with."""
        return "chat" if self.material.conversations else "generate"

    def outcome(self, before: dict[str, float], after: dict[str, float]) -> Outcome:
        """Perplexity before and after."""
        if not (before and after):
            return Outcome()
        whose = "Answer perplexity" if self.material.conversations else "Perplexity"
        return Outcome(lines=(f"{whose} {before['perplexity']:.4g} before, {after['perplexity']:.4g} after.",))

    # -- the data

    def _read(self, spec: str) -> Material:
        """All parts of a specification."""
        material = Material()
        for name, plain in self._parts(spec):
            if plain:
                self._read_texts(name, material)
            else:
                self._read_records(name, material)
        return material

    def _parts(self, spec: str) -> list[tuple[str, bool]]:
        """Each part, and whether it is plain text: where it is nothing else, or by `--text-column`."""
        from yeoul.data.sources import resolve

        if spec not in self._known_parts:
            named, parts = self.examples.text_column is not None, []
            for source in resolve(spec, reading=self.examples.reading):
                texts = source.builtin_bytes or all(kind == ".txt" for _, kind in source.files)
                parts.append((source.name, bool(texts) or named))
            self._known_parts[spec] = parts
        return self._known_parts[spec]

    def _documents(self, spec: str) -> Iterator[str]:
        """Plain texts as `yeoul pretrain` reads them."""
        from yeoul.data.documents import read_documents

        return iter(read_documents([spec], text_column=self.examples.text_column, reading=self.examples.reading))

    def _records(self, spec: str) -> Records[Record]:
        """Conversations, and texts among them."""
        from yeoul.data.conversations import read_conversations

        return read_conversations(
            spec, question_column=self.options.question_column, answer_column=self.options.answer_column,
            on_bad_record=self.examples.on_bad_record, reading=self.examples.reading,
        )  # fmt: skip

    def _read_texts(self, spec: str, material: Material) -> None:
        """Documents, each learned whole."""
        import numpy as np

        from yeoul.data.examples import Example

        documents = self._documents(spec)
        while texts := list(islice(documents, ENCODED_TOGETHER)):
            for ids in self.tokenizer.encode_batch(texts):
                whole = np.asarray(self.tokenizer.framing.document(ids), dtype=np.int32)
                material.examples.append(Example(whole, np.ones(len(whole), dtype=bool)))
            material.texts += len(texts)

    def _read_records(self, spec: str, material: Material) -> None:
        """Conversations as the model's template writes them, and texts among them."""
        from yeoul.data.examples import make_examples
        from yeoul.text.chat import ensure_template, render_chat

        texts, talking = 0, ensure_template(self.tokenizer)

        def encode(text: str) -> list[int]:
            nonlocal texts
            texts += 1
            return self.tokenizer.framing.document(self.tokenizer.encode(text))

        records = self._records(spec)
        render = partial(render_chat, talking, train_on=self.options.train_on)
        material.examples += make_examples(records, render, encode)
        material.texts += texts
        if records.read > texts:  # plain text teaches no template
            self.tokenizer = talking
        material.conversations += records.read - texts
        material.skipped += records.skipped
        material.complaint = material.complaint or next(iter(records.complaints), "")

    def _context(self, examples: list[Example]) -> int:
        """Tokens of a row: those asked for, else of the longest example, within the model's length and `LONGEST`."""
        model = self.model.config
        most = min(model.max_position_embeddings, LONGEST)
        if not self.packing:
            most = max(2, min(most, max((len(example.ids) - 1 for example in examples), default=2)))
        return chosen_context(self.training.context, model, most)

    def _fitted(self, examples: list[Example], where: str) -> tuple[list[Example], int, int]:
        """Examples of at most `context` + 1 tokens, how many were cut, and how many had nothing left to learn."""
        from yeoul.data.examples import fit_examples, in_pieces

        pieces = in_pieces(examples, self.context, self.tokenizer.framing.begin)
        fitted = fit_examples(pieces, self.context)
        if not fitted.examples:
            what = f"none of the {count(len(examples), 'example')} has anything to learn within {self.context:,} tokens"
            raise UserError(what, where, "give a longer --context" if fitted.cut else "give examples with answers")
        return fitted.examples, fitted.cut, fitted.dropped

    def _template_tokens(self) -> tuple[int, ...]:
        """Special tokens that the chat template writes into the examples, where their embeddings are to be trained."""
        from yeoul.text.chat import CHAT_TOKENS

        if self.adapter is None:
            return ()
        tokenizer, wanted = self.tokenizer, self.adapter.train_tokens
        if wanted is None:
            wanted = all(token in tokenizer.special_tokens for token in CHAT_TOKENS)
        if not wanted or not self.material.conversations:
            return ()
        usual = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id}
        special = {i for i in tokenizer.special_tokens.values() if i < self.model.config.vocab_size} - usual
        return tuple(sorted({i for ids, _ in self.train for i in special.intersection(ids.tolist())}))

    def _batches_of_an_epoch(self) -> int:
        from yeoul.data.loader import Piece, pack_rows

        rows = len(self.train)
        if self.packing:
            pieces = (Piece(number, len(example.ids) - 1) for number, example in enumerate(self.train))
            rows = sum(1 for _ in pack_rows(pieces, self.context))
        return math.ceil(rows / self.training.batch_size)

    @property
    def _pad_id(self) -> int:
        known = (self.tokenizer.pad_id, self.tokenizer.eos_id, 0)
        return next(token for token in known if token is not None and token < self.model.config.vocab_size)


def _digest(examples: list[Example]) -> str:
    """Of tokens and their marks."""
    digest = hashlib.blake2b(digest_size=16)
    for ids, trained in examples:
        digest.update(len(ids).to_bytes(8, "little") + ids.tobytes() + trained.tobytes())
    return digest.hexdigest()
