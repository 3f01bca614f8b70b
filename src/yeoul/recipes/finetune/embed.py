"""The task embed: vectors of texts, from pairs that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from yeoul.errors import UserError
from yeoul.recipes.finetune.data import show_loss_mask
from yeoul.recipes.finetune.task import Outcome, TaskSetup, Validate
from yeoul.recipes.finetune.texts import TextTask, WholeTextOptions, save_tokenizer
from yeoul.train.criterion import Criterion
from yeoul.units import count

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from yeoul.data.labelled import Table, TextPair
    from yeoul.data.text_batches import Item
    from yeoul.infer.texts import TextEmbedder
    from yeoul.model.decoder import Decoder
    from yeoul.model.heads import TextVectors
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.train.loss import Objective
    from yeoul.train.texts import PairLoss


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """Of --task embed."""

    pair_columns: tuple[str, str] | None = None
    """The two columns with texts that belong together; when not given, they are looked up by their usual names."""
    score_column: str | None = None
    """Column with a similarity score, on any scale; when not given, it is looked up by its usual names."""
    pair_loss: Literal["cosent", "pearson", "cosine", "infonce"] | None = None
    """For pairs with scores: cosent (their order; the default), pearson (their correlation with the cosines; the
    default with --whiten) or cosine (the cosine should equal the score, scaled to 0 to 1). For pairs without: infonce
    (each text finds its partner in the batch)."""
    temperature: float = 0.05
    """Divides the cosines in cosent and infonce; smaller values penalize close neighbours more."""
    states: Literal["last", "embeddings", "both"] = "last"
    """What is pooled: the last hidden states (last), the embeddings before the first block (then no block is used), or
    both side by side."""
    whiten: bool = False
    """Add a linear layer on the pooled states, initialized to whiten them over the training texts."""
    freeze_model: bool = False
    """Train only that layer, which takes seconds; --lr is then 1e-3 when not given."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"--temperature is {self.temperature}, but must be above 0")
        if self.freeze_model and not self.whiten:
            what = "a frozen model without a layer on top has nothing to train"
            raise UserError(what, "--freeze-model", "add --whiten")


def _stripped(texts: Sequence[str]) -> tuple[str, ...]:
    """As they are read later for their vectors."""
    return tuple(text.strip() for text in texts)


WITHIN_BATCH = ("cosent", "pearson")
"""Losses that compare the pairs of a batch with one another: batches of texts alike in length would mislead them."""
LEAST_PEARSON = 3
"""Pairs of a batch, for a correlation."""
FROZEN_RATE = 1e-3
"""Peak learning rate of the layer alone."""
WHITENED = 20_000
"""Most texts of which a whitening is made."""
MOST_KNOWN = 2**31
"""Bytes of pooled states that are kept while the model is frozen; where there are more they are computed anew."""


class EmbedTask(TextTask):
    """Pairs of texts; with --whiten, `extra` makes vectors of the pooled states."""

    name, verb = "embed", "embed"
    extra: TextVectors | None = None
    loss, ways, splits = "hidden", 2, False

    def __init__(self, setup: TaskSetup, texts: WholeTextOptions, options: EmbedOptions) -> None:
        super().__init__(setup, texts)
        self.options = options

    def check_data(self) -> None:
        """Reads the data and divides it."""
        how = self.examples
        table = self._read(self.data)
        train, val = table.records, list["TextPair"]()
        if how.val_data is not None:
            val = self._read(how.val_data).records
        elif how.val_fraction:
            train, val = how.held_out(train, lambda pair: pair.texts)
        self.first, self.scored = train[0], train[0].score is not None
        self._check_kinds(train, val)
        if self.scored:
            known = [pair.score for pair in train if pair.score is not None]
            self.low, self.high = min(known), max(known)
            if self.low == self.high:
                raise UserError(f"all pairs have the score {self.low:g}", self.data, "give different scores")
        self.pairs = train, val
        self.skipped, self.complaint = table.skipped, next(iter(table.complaints), "")

    def prepare(self, model: Decoder, tokenizer: Tokenizer) -> None:
        """Tokens of the pairs, and how vectors are made of them."""
        import numpy as np

        self._freeze(model)
        train, val = self.pairs
        del self.pairs  # from here on tokens
        if self.scored:
            self.targets, self.val_targets = (
                np.array([pair.score for pair in pairs], dtype=np.float32) for pairs in (train, val)
            )
        self.bucket_by_length = self.loss_name not in WITHIN_BATCH
        self.set_items(model, tokenizer, *([_stripped(pair.texts) for pair in pairs] for pairs in (train, val)))
        self._make_vectors()

    def _freeze(self, model: Decoder) -> None:
        """What the vectors do not depend on, or is not to be trained, gets no gradients."""
        flags, lora = self.options, self.adapter
        if self.head_rate is not None and (flags.freeze_model or not flags.whiten):
            fix = "give its rate as --lr" if flags.freeze_model else "add --whiten"
            raise UserError("there is no layer that could have its own learning rate", "--head-lr", fix)
        if lora is not None and flags.freeze_model:
            raise UserError("a frozen model has no adapter to train", "--freeze-model", "leave out --method")
        if lora is not None and flags.states == "embeddings" and "embed_tokens" not in lora.target_modules:
            fix = "leave out --method, or use --states both"
            raise UserError("the adapter is in the blocks, which the embeddings do not use", "--states", fix)
        for name, parameter in model.named_parameters():
            if flags.freeze_model or (flags.states == "embeddings" and not name.startswith("model.embed_")):
                parameter.requires_grad_(False)
        if flags.freeze_model:
            self.learned, self.rate = "the layer on its vectors alone", FROZEN_RATE
        elif flags.states == "embeddings" and lora is None:
            self.learned = "the embeddings" + (" and the layer on them" if flags.whiten else "")

    def _make_vectors(self) -> None:
        """How vectors are made; the whitening of the training texts' pooled states."""
        import numpy as np
        import torch

        from yeoul.model.heads import TextVectors, Whitening

        flags = self.options
        self.vectors = TextVectors(self.whole_texts.pooling or "mean", flags.states)
        self.known: Tensor | None = None
        self.known_val: Tensor | None = None
        if not flags.whiten:
            return
        ways, width = len(self.items[0]), self.vectors.pooled_width(self.model.config.hidden_size)
        constant = flags.freeze_model and not self.whole_texts.word_dropout
        if constant and 4 * len(self.items) * ways * width <= MOST_KNOWN:
            self.known = self._pooled(self.items)
            self.known_val = self._pooled(self.val) if self.val else None
        draw = np.random.default_rng(self.training.seed)
        count = min(len(self.items), max(1, WHITENED // ways))
        chosen = np.sort(draw.choice(len(self.items), count, replace=False))
        if self.known is None:
            texts = self._pooled([self.items[n] for n in chosen])
        else:
            texts = self.known[torch.from_numpy(chosen)]
        self.vectors.layers.append(Whitening(texts.flatten(0, 1)))
        self.extra = self.vectors

    def _pooled(self, items: Sequence[Item]) -> Tensor:
        """(N, ways, width): the pooled states of examples."""
        from yeoul.train.texts import pooled_items

        size = self.training.batch_size
        return pooled_items(self.model, self.vectors, items, batch_size=size, dtype=self.compute_dtype())

    def _read(self, spec: str) -> Table[TextPair]:
        from yeoul.data.labelled import read_pairs

        return read_pairs(
            spec, pair_columns=self.options.pair_columns, score_column=self.options.score_column,
            on_bad_record=self.examples.on_bad_record, reading=self.examples.reading,
        )  # fmt: skip

    def _check_kinds(self, train: Sequence[TextPair], val: Sequence[TextPair]) -> None:
        """Loss, training data and validation data agree about scores."""
        flags = self.options
        # CoSENT minds the worst pairs most, which pulls a layer that begins as a whitening apart.
        usual = "pearson" if flags.whiten else "cosent"
        self.loss_name = flags.pair_loss or (usual if self.scored else "infonce")
        if self.scored != (self.loss_name != "infonce"):
            what = "the pairs have scores" if self.scored else "the pairs have no scores"
            named = "use infonce, or give the column (--score-column)"
            fix = "use cosent, pearson or cosine" if self.scored else named
            raise UserError(f"{what}, which {self.loss_name} cannot use", "--pair-loss", fix)
        # The losses also fall when all vectors become alike.
        if self.scored:
            self.criterion = Criterion(key="spearman", name="Spearman of the validation", higher=True)
        else:
            self.criterion = Criterion(key="partner_found", name="share that finds its partner", higher=True)
        if self.loss_name == "pearson" and self.training.batch_size < LEAST_PEARSON:
            raise UserError("fewer than three pairs have no correlation", "--batch-size", "give 3 or more")
        if val and (val[0].score is not None) != self.scored:
            raise UserError("only one of the training and validation data has scores", self.examples.val_data)

    def introduce(self) -> list[str]:
        """Sizes, the loss, and the first example."""
        kind = count(len(self.items), "triple" if self.first.negative is not None else "pair")
        scores = f" with scores from {self.low:g} to {self.high:g}" if self.scored else ""
        lines = self.data_lines(f"{kind}{scores}", self.skipped, self.complaint)
        lines.append(f"Loss: {self.loss_name}; a text's vector is the {self._described()}.")
        shown = [show_loss_mask(self.tokenizer, list(ids), [True] * len(ids)).split("\n")[-1] for ids in self.items[0]]
        score = f"\n  score {self.first.score:g}" if self.first.score is not None else ""
        return [*lines, "First example, tokens separated by bars:", "\n".join(shown) + score]

    def _described(self) -> str:
        what = {"last": "last hidden states", "embeddings": "embeddings", "both": "embeddings and last hidden states"}
        whose = "last token's" if self.vectors.pooling == ("last",) else "mean of all tokens'"
        return f"{whose} {what[self.vectors.states]}{', whitened' if self.extra is not None else ''}"

    def _loss(self) -> PairLoss:
        from yeoul.train import contrastive

        temperature = self.options.temperature

        def loss(vectors: tuple[Tensor, ...], scores: Tensor | None) -> Tensor:
            if scores is None:
                return contrastive.info_nce(*vectors, temperature=temperature)
            if self.loss_name == "pearson":
                return contrastive.pearson(vectors[0], vectors[1], scores)
            if self.loss_name == "cosent":
                return contrastive.cosent(vectors[0], vectors[1], scores, temperature=temperature)
            return contrastive.cosine_regression(vectors[0], vectors[1], (scores - self.low) / (self.high - self.low))

        return loss

    def objective(self) -> Objective:
        """The loss of the vectors."""
        from yeoul.train.texts import embedding_objective

        return embedding_objective(self._loss(), self.vectors, self.known)

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
        """First, second ... texts of the held-out examples as vectors, (N, width) each, on the CPU."""
        pooled = self._pooled(self.val) if self.known_val is None else self.known_val
        return tuple(self.vectors(pooled).cpu().unbind(1))

    def _val_loss(self, vectors: tuple[Tensor, ...]) -> float:
        """In batches of the training's size: the losses depend on who is in a batch."""
        import torch

        loss, total = self._loss(), 0.0
        scores = None if self.val_targets is None else torch.from_numpy(self.val_targets)
        for start in range(0, len(self.val), self.training.batch_size):
            part = slice(start, start + self.training.batch_size)
            here = tuple(way[part] for way in vectors)
            total += float(loss(here, None if scores is None else scores[part])) * len(here[0])
        return total / len(self.val)

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Model, tokenizer, and how vectors are made of its states."""
        from yeoul.model.checkpoint import save_model
        from yeoul.model.pooling_folder import save_vectors
        from yeoul.recipes.saving import merged_model

        save_model(merged_model(self.model, dtype), folder)
        save_tokenizer(self.tokenizer, folder, self.pad_id)
        save_vectors(folder, self.model.config, self.vectors, modules=not self._is_own(folder))

    @staticmethod
    def _is_own(folder: Path) -> bool:
        """Whether transformers cannot open the folder without Yeoul."""
        from yeoul.safe_json import read_object

        return bool(read_object(folder / "config.json").get("model_type") == "yeoul")

    def save_beside(self, folder: Path) -> None:
        """Tokenizer, and how vectors are made of the model's states."""
        from yeoul.model.pooling_folder import save_vectors

        save_tokenizer(self.tokenizer, folder, self.pad_id)
        save_vectors(folder, self.model.config, self.vectors, modules=False)

    def embedder(self) -> TextEmbedder:
        """Model and layers."""
        from yeoul.infer.texts import TextEmbedder

        return TextEmbedder(self.model, self.tokenizer, self.vectors.eval())

    def outcome(self, before: dict[str, float], after: dict[str, float]) -> Outcome:
        """What the vectors are worth, before and after."""
        shown = (("spearman", "Spearman"), ("partner_found", "Share that finds its partner"))
        return Outcome(lines=tuple(
            f"{what} on the validation data: {before[key]:.4f} before, {after[key]:.4f} after."
            for key, what in shown if key in before and key in after
        ))  # fmt: skip
