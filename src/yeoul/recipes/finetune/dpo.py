"""The task dpo: of two answers, the better one."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from yeoul.errors import UserError
from yeoul.recipes.finetune.data import chosen_context, show_loss_mask
from yeoul.recipes.finetune.task import GeneratingTask, Outcome, TaskSetup, Validate, refuse_train_tokens
from yeoul.units import count, duration

if TYPE_CHECKING:
    import numpy as np

    from yeoul.data.conversations import Record
    from yeoul.data.preferences import Pair, PairLoader
    from yeoul.data.record_files import Records
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.train.loss import Objective

LONGEST = 1024
"""Tokens of a prompt with its answer when no context is given."""
SHOWN = ("loss", "accuracy", "margin")
"""What validation says."""


@dataclass(frozen=True, kw_only=True)
class DpoOptions:
    """Of --task dpo."""

    beta: float = 0.1
    """Penalty on moving away from the original model: the larger, the closer the trained one stays to it."""
    preference_noise: float = 0.0
    """Share of pairs assumed to be mislabelled, so that no pair is learned too strongly (label smoothing)."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise UserError(f"--beta is {self.beta}, but must be above 0", fix="give a number such as 0.1")
        if not 0 <= self.preference_noise < 0.5:
            raise UserError(f"{self.preference_noise} is not a share from 0 to below 0.5", "--preference-noise")


class DpoTask(GeneratingTask):
    """Pairs of answers; nothing is trained beside the model.

    The reference is the model as it came. Its log-probabilities of all pairs are computed once, before the training and
    before the state of a resumed run is read, so no second copy of the weights is held.
    """

    name, verb = "dpo", "chat"
    ways = 2

    def __init__(self, setup: TaskSetup, options: DpoOptions) -> None:
        if setup.examples.text_column is not None:
            raise UserError("preferences have no text column", "--text-column", "leave it out")
        refuse_train_tokens(setup, self.name, "make a chat model first (--task chat)")
        super().__init__(setup)
        self.options = options
        self._reference: tuple[np.ndarray, np.ndarray] | None = None

    def check_data(self) -> None:
        """Every record."""
        for spec in (self.data, self.examples.val_data):
            if spec is not None:
                deque(self._records(spec), maxlen=0)

    def prepare(self, model: Decoder, tokenizer: Tokenizer) -> None:
        """Reads the data, renders it, divides it by prompts, and fits it into the context."""
        from yeoul.infer.texts import padding_id
        from yeoul.text.chat import ensure_template

        how = self.examples
        self.given_template = tokenizer.chat_template
        self.model, self.tokenizer = model, ensure_template(tokenizer)
        self.pad_id = padding_id(tokenizer, model.config)
        self.skipped, self.complaint = 0, ""
        train, val = self._read(self.data), list["Pair"]()
        self.count = len(train)
        if how.val_data is not None:
            val = self._read(how.val_data)
        elif how.val_fraction:
            train, val = how.held_out(train, lambda pair: pair.prompt)
        self.context = self._context(train)
        self.train, self.cut, self.dropped = self._fitted(train, self.data)
        self.val = self._fitted(val, how.val_data or self.data)[0] if val else []
        self.epoch_batches = -(-len(self.train) // self.training.batch_size)

    def _read(self, spec: str) -> list[Pair]:
        from yeoul.data.preferences import make_pairs
        from yeoul.text.chat import render_chat

        records = self._records(spec)
        pairs = make_pairs(records, partial(render_chat, self.tokenizer))
        self.skipped += records.skipped
        self.complaint = self.complaint or next(iter(records.complaints), "")
        return pairs

    def _records(self, spec: str) -> Records[Record]:
        from yeoul.data.conversations import read_conversations

        how = self.examples
        return read_conversations(spec, kind="preference", on_bad_record=how.on_bad_record, reading=how.reading)

    def _context(self, pairs: list[Pair]) -> int:
        """Tokens of the longest row: those asked for, else what the data needs within the model's length."""
        model = self.model.config
        longest = max((len(row.ids) for pair in pairs for row in pair[1:]), default=0)
        fitting = max(2, min(model.max_position_embeddings, LONGEST, longest - 1))
        return chosen_context(self.training.context, model, fitting)

    def _fitted(self, pairs: list[Pair], where: str) -> tuple[list[Pair], int, int]:
        from yeoul.data.preferences import fit_pairs

        fitted = fit_pairs(pairs, self.context)
        if not fitted.pairs:
            what = f"none of the {count(len(pairs), 'pair')} has two different answers within {self.context:,} tokens"
            raise UserError(what, where, "give a longer --context" if fitted.cut else "give pairs with answers")
        return fitted

    def identity(self) -> dict[str, object]:
        """What the flags do not say: the tokens themselves, which change with the template."""
        return {"pairs": _digest(self.train), "validation": _digest(self.val)}

    def introduce(self) -> list[str]:
        """Sizes, what was left out, and the first pair."""
        tokens = sum(len(row.ids) for pair in self.train for row in pair[1:])
        held_out = f"{len(self.val):,} with other prompts for validation" if self.val else "none for validation"
        lines = [f"Data: {count(len(self.train), 'pair')}, {held_out}; {tokens:,} tokens; beta {self.options.beta:g}."]
        if self.skipped:
            lines.append(f"Left out: {count(self.skipped, 'unusable record')}. The first: {self.complaint}")
        if self.cut:
            lines.append(f"Truncated to {self.context:,} tokens: {count(self.cut, 'pair')}.")
        if self.dropped:
            lines.append(f"Left out, with no two different answers within that length: {count(self.dropped, 'pair')}.")
        if self.given_template is None:
            lines.append("The model has no chat template; the default one is saved with it.")
        head, *_ = show_loss_mask(self.tokenizer, [], []).split("\n")
        shown = (show_loss_mask(self.tokenizer, row.ids.tolist(), row.trained.tolist()) for row in self.train[0][1:])
        better, worse = (text.partition("\n")[2].strip() for text in shown)
        return [*lines, head.replace("example", "pair"), f"  better: {better}", f"  worse:  {worse}"]

    # -- the reference

    def _references(self) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of the training and the validation pairs in the model as it came, (pairs, 2) each.

        The first call must come before the training, and before the state of a resumed run is read.
        """
        if self._reference is None:
            began, number = time.perf_counter(), len(self.train) + len(self.val)
            self.say(f"Reference: {count(number, 'pair')}, scored once by the original model ...")
            self._reference = self._log_probs(self.train), self._log_probs(self.val)
            self.say(f"Reference: done in {duration(time.perf_counter() - began)}.")
        return self._reference

    def _log_probs(self, pairs: list[Pair]) -> np.ndarray:
        from yeoul import runtime
        from yeoul.train.preference import log_probs_of_pairs

        train, device = self.training, self.model.device
        return log_probs_of_pairs(
            self.model, pairs, batch_size=train.rows, pad_id=self.pad_id,
            dtype=runtime.resolve_dtype(train.dtype, device),
        )  # fmt: skip

    # -- the training

    def loader(self) -> PairLoader:
        """From the beginning of the first epoch."""
        from yeoul.data.preferences import PairLoader

        train = self.training
        return PairLoader(
            self.train, self._references()[0], batch_size=train.batch_size, seed=train.seed, pad_id=self.pad_id
        )

    def objective(self) -> Objective:
        """DPO."""
        from yeoul.train.preference import preference_objective

        flags = self.options
        return preference_objective(beta=flags.beta, noise=flags.preference_noise)

    def validate(self) -> Validate | None:
        """Loss, share of the held-out pairs whose better answer gained more than the worse one, and by how much."""
        from yeoul.train.preference import preference_scores

        if not self.val:
            return None
        reference, flags = self._references()[1], self.options

        def validate() -> dict[str, float]:
            policy = self._log_probs(self.val)
            scores = preference_scores(policy, reference, beta=flags.beta, noise=flags.preference_noise)
            return {key: scores[key] for key in SHOWN}

        return validate

    def outcome(self, before: dict[str, float], after: dict[str, float]) -> Outcome:
        """What was learned of the held-out pairs."""
        if not after:
            return Outcome()
        line = (
            f"Validation on {count(len(self.val), 'pair')}: the better answer gained more than the worse one in "
            f"{after['accuracy']:.1%}, by a margin of {after['margin']:.3f} (beta times nats)."
        )
        return Outcome(lines=(line,))


def _digest(pairs: list[Pair]) -> str:
    """Of tokens and their marks."""
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        for ids, trained in pair[1:]:
            digest.update(len(ids).to_bytes(8, "little") + ids.tobytes() + trained.tobytes())
    return digest.hexdigest()
