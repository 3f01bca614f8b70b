"""`yeoul finetune --task embed`: vectors of texts, from pairs that belong together."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from yeoul.commands.finetune_texts import TextTask
from yeoul.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from yeoul.commands.finetune import Config
    from yeoul.commands.finetune_tasks import Validate
    from yeoul.data.labelled import Table, TextPair
    from yeoul.model.decoder import Decoder
    from yeoul.model.heads import Pooling
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.train.loss import Objective
    from yeoul.train.texts import PairLoss


@dataclass(frozen=True, kw_only=True)
class EmbedFlags:
    """Of --task embed."""

    pair_columns: tuple[str, str] | None = None
    """The two columns with texts that belong together; found by their usual names when not given."""
    score_column: str | None = None
    """Column that says how much they do, on any scale; found by its usual names when not given."""
    pair_loss: Literal["cosent", "cosine", "infonce"] | None = None
    """For pairs with scores cosent (their order; when not given) or cosine (the cosine is to be the score, scaled to
    0 to 1); for pairs without, infonce (each finds its partner in the batch)."""
    temperature: float = 0.05
    """Divides the cosines in cosent and infonce; smaller minds close neighbours more."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"{self.temperature} is no temperature", "--temperature", "give a number above 0")


def make(config: Config) -> EmbedTask:
    """The task."""
    return EmbedTask(config)


class EmbedTask(TextTask):
    """Pairs of texts, as `Task` asks; nothing is trained beside the model."""

    extra = None

    def prepare(self, model: Decoder, tokenizer: Tokenizer) -> None:
        """Reads the data and divides it."""
        import numpy as np

        from yeoul.commands.finetune_tasks import divide

        config = self.config
        table = self._read(config.data)
        train, val = table.records, list["TextPair"]()
        if config.val_data is not None:
            val = self._read(config.val_data).records
        elif config.val_fraction:
            train, val = divide(train, config.val_fraction, config.val_max, lambda pair: pair.texts)
        self.first, self.scored = train[0], train[0].score is not None
        self._check_kinds(train, val)
        if self.scored:
            known = [pair.score for pair in train if pair.score is not None]
            self.low, self.high = min(known), max(known)
            if self.low == self.high:
                raise UserError(f"all pairs have the score {self.low:g}", config.data, "give different scores")
            self.targets, self.val_targets = (
                np.array([pair.score for pair in pairs], dtype=np.float32) for pairs in (train, val)
            )
        self.skipped, self.complaint = table.skipped, next(iter(table.complaints), "")
        self.pooling: Pooling = config.texts.pooling or "mean"
        self.set_items(model, tokenizer, [pair.texts for pair in train], [pair.texts for pair in val])

    def _read(self, spec: str) -> Table[TextPair]:
        from yeoul.data.labelled import read_pairs

        config = self.config
        return read_pairs(
            spec, pair_columns=config.embed.pair_columns, score_column=config.embed.score_column,
            on_bad_record=config.on_bad_record,
        )  # fmt: skip

    def _check_kinds(self, train: Sequence[TextPair], val: Sequence[TextPair]) -> None:
        """Loss, training data and validation data agree about scores."""
        wanted = self.config.embed.pair_loss
        self.loss_name = wanted or ("cosent" if self.scored else "infonce")
        if self.scored != (self.loss_name != "infonce"):
            what = "the pairs have scores" if self.scored else "the pairs have no scores"
            fix = "take cosent or cosine" if self.scored else "take infonce, or name the column (--score-column)"
            raise UserError(f"{what}, which {self.loss_name} does not take", "--pair-loss", fix)
        if val and (val[0].score is not None) != self.scored:
            raise UserError("only one of training and validation data has scores", self.config.val_data)

    def introduce(self) -> list[str]:
        """Sizes, the loss, and the first example."""
        from yeoul.commands.finetune_tasks import marked

        kind = "triples" if self.first.negative is not None else "pairs"
        scores = f" with scores from {self.low:g} to {self.high:g}" if self.scored else ""
        lines = self.data_lines(f"{len(self.items):,} {kind}{scores}", self.skipped, self.complaint)
        states = "last token's state" if self.pooling == "last" else "mean of all tokens' states"
        lines.append(f"Loss: {self.loss_name}; a text's vector is the {states}.")
        shown = [marked(self.tokenizer, list(ids), [True] * len(ids)).splitlines()[-1] for ids in self.items[0]]
        score = f"\n  score {self.first.score:g}" if self.first.score is not None else ""
        return [*lines, "First example, tokens between bars:", "\n".join(shown) + score]

    def _loss(self) -> PairLoss:
        from yeoul.train import contrastive

        temperature = self.config.embed.temperature

        def loss(vectors: tuple[Tensor, ...], scores: Tensor | None) -> Tensor:
            if scores is None:
                return contrastive.info_nce(*vectors, temperature=temperature)
            if self.loss_name == "cosent":
                return contrastive.cosent(vectors[0], vectors[1], scores, temperature=temperature)
            return contrastive.cosine_regression(vectors[0], vectors[1], (scores - self.low) / (self.high - self.low))

        return loss

    def objective(self) -> Objective:
        """The loss of the pooled vectors."""
        from yeoul.train.texts import embedding_objective

        return embedding_objective(self._loss(), self.pooling)

    def validate(self) -> Validate | None:
        """Loss of the held-out pairs, and Spearman of their cosines and scores, or how many find their partner."""
        if not self.val:
            return None
        return self._validate

    def _validate(self) -> dict[str, float]:
        from yeoul.evaluate.similarity import cosines, nearest, spearman

        vectors = self._val_vectors()
        first, second = vectors[0].numpy(), vectors[1].numpy()
        values = {"loss": self._val_loss(vectors)}
        if self.val_targets is not None:
            return values | {"spearman": spearman(cosines(first, second), self.val_targets)}
        found, _ = nearest(first, second, 1)
        return values | {"partner_found": float((found[:, 0] == range(len(first))).mean())}

    def _val_vectors(self) -> tuple[Tensor, ...]:
        """First, second ... texts of the held-out examples as vectors, (N, hidden) each, on the CPU."""
        import torch

        from yeoul.data.text_batches import text_batches
        from yeoul.model.heads import pool, text_hidden

        device, dtype = self.model.device, self.compute_dtype()
        result = torch.zeros(len(self.val[0]), len(self.val), self.model.config.hidden_size)
        size = self.config.train.batch_size
        for chosen, batch in text_batches(self.val, None, batch_size=size, pad_id=self.pad_id):
            here = batch.to(device)
            with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                hidden = text_hidden(self.model, here.input_ids, here.mask)
                vectors = pool(hidden, here.mask, self.pooling)
            result[:, torch.from_numpy(chosen)] = vectors.float().cpu().view(batch.ways, len(chosen), -1)
        return tuple(result)

    def _val_loss(self, vectors: tuple[Tensor, ...]) -> float:
        """In batches of the training's size: the losses depend on who is in a batch."""
        import torch

        loss, total = self._loss(), 0.0
        scores = None if self.val_targets is None else torch.from_numpy(self.val_targets)
        for start in range(0, len(self.val), self.config.train.batch_size):
            part = slice(start, start + self.config.train.batch_size)
            here = tuple(way[part] for way in vectors)
            total += float(loss(here, None if scores is None else scores[part])) * len(here[0])
        return total / len(self.val)

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Model, tokenizer, and how it is pooled."""
        from yeoul.commands.finetune_texts import save_tokenizer
        from yeoul.commands.recipe import plain
        from yeoul.model.checkpoint import save_model
        from yeoul.model.pooling_folder import save_pooling

        save_model(plain(self.model, dtype), folder)
        save_tokenizer(self.tokenizer, folder, self.pad_id)
        save_pooling(folder, self.model.config, self.pooling, modules=not self._is_own(folder))

    @staticmethod
    def _is_own(folder: Path) -> bool:
        """Whether transformers cannot open the folder without Yeoul."""
        from yeoul.model.checkpoint import read_json

        return bool(read_json(folder / "config.json").get("model_type") == "yeoul")

    def save_beside(self, folder: Path) -> None:
        """Tokenizer, and how the model is pooled."""
        from yeoul.commands.finetune_texts import save_tokenizer
        from yeoul.model.pooling_folder import save_pooling

        save_tokenizer(self.tokenizer, folder, self.pad_id)
        save_pooling(folder, self.model.config, self.pooling, modules=False)

    def finish(self, out: Path, before: dict[str, float], after: dict[str, float]) -> list[str]:
        """What the vectors are worth, before and after, and how to make some."""
        lines = []
        for key, what in (("spearman", "Spearman"), ("partner_found", "Share that finds its partner")):
            if key in before and key in after:
                lines.append(f"{what} of the validation: {before[key]:.4f} before, {after[key]:.4f} after.")
        return [*lines, f"Next: yeoul embed {shlex.quote(str(out))} --data texts.txt --out vectors.npy"]
