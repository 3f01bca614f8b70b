"""Settings of `yeoul.linearize`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, get_args

from cyclopts import Parameter

from yeoul.config import Settings
from yeoul.errors import UserError
from yeoul.model.feature_maps.registry import FeatureMapName
from yeoul.model.state_updates.registry import StateUpdateName
from yeoul.recipes.options import TextOptions
from yeoul.train.config import (  # the first three, because cyclopts looks up here what inherited fields are
    DTypeName,  # noqa: F401
    OptimizerName,  # noqa: F401
    Schedule,  # noqa: F401
    TrainConfig,
    TrainHabits,
)

if TYPE_CHECKING:
    from yeoul.adapt.linearize import Conversion
    from yeoul.model.config import ModelConfig

Stage = Literal["align", "distil", "finetune"]
Trained = Literal["maps", "attention", "all", "low-rank", "low-rank-all"]
WINDOW = 64
"""Of the hybrid, where the model has no sliding layers."""
PAIRS_SHARE, MOST_PAIRS = 16, 256
"""Exact pairs of a head when none are given: one for so many tokens of the context, but at most so many."""
LONGEST = 2048
"""Context when none is given, if the model supports more."""
LARGE_VOCABULARY, FEW_POSITIONS = 65_536, 0.125
"""Above so many tokens distillation compares predictions at this share of the positions."""
RATE, LARGE = 1e-4, 100_000_000
LARGE_RATES: Mapping[Trained, float] = {"all": 1e-5, "attention": 3e-5}
"""Learning rates of the teacher's weights, and above so many parameters, by what is trained: there one step of the
first makes models worse."""
BATCH, LARGE_STEPS = 8, 500
"""Sequences of a step when none are given; above `LARGE` parameters fewer, if so many steps of them would be more than
the budget: there a budget that one can wait for is small."""
LARGE_RECALL = 0.2
"""Share of recall texts, above `LARGE` parameters: smaller models hardly recall, so there is nothing to keep."""
MAP_RATE, CODEBOOK_RATE = 5e-3, 5e-4
"""Learning rates of feature maps. A codebook begins where it has only little to learn."""
LEAST_PATIENCE = 10
"""Steps of the shortest window in which a stage's loss is averaged."""
LARGEST_VALIDATION, LEAST_VALIDATION = 200_000, 4096
"""Tokens of a validation when none are given."""
LARGEST_BUDGET, MOST_PASSES = 2_000_000, 4
"""Budget when none is given: so many tokens, but at most so many passes over the text; further ones teach little
(Muennighoff and others 2023)."""


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """How the softmax layers are converted."""

    attention: Literal["hybrid", "dijiang"] = "hybrid"
    """hybrid: a softmax window and linear attention over what came before it; dijiang: linear attention alone."""
    window: int | None = None
    """Sliding window of the hybrid, in tokens; by default that of the model's own sliding layers, or else 64."""
    sinks: int = 4
    """Attention sinks: number of first tokens that the hybrid's softmax always sees."""
    exact: str = "auto"
    """Exact key-value pairs that each key-value head of the hybrid keeps beside its window, those that later queries
    are likeliest to need: one number, or one for each converted layer, with commas; 0 for none; auto: one for every 16
    tokens of the context, but at most 256."""
    exact_total: int | None = None
    """Exact pairs of a key-value head in all converted layers together, divided by what cutting each layer alone to its
    window costs; instead of --exact."""
    keep_softmax: str = "0"
    """Number of layers that stay softmax: those that depend most on distant text; auto: the fewest that account for
    half of the long-context gain, at most a quarter of the layers. Their KV caches keep growing."""
    softmax_layers: tuple[int, ...] = ()
    """Layers that stay softmax, by number, counted from 0; instead of --keep-softmax."""
    map: FeatureMapName | None = None
    """Feature map; by default codebook for the hybrid, fourier for linear attention alone or with the delta rule, and
    otherwise dijiang. The options below default to what the map uses."""
    features: int | None = None
    """Features per head; by default eight times the head size with fourier, four times with codebook, otherwise twice,
    or once where the map has no pairs."""
    kernel: Literal["softmax", "exp"] | None = None
    """Feature kernel: softmax normalises the features of each vector, exp estimates the softmax kernel."""
    radii: Literal["chi", "normal"] | None = None
    """Distribution of the frequencies."""
    sequence: Literal["sobol", "stratified", "random"] | None = None
    """Point set that the frequencies are drawn from: quasi-Monte Carlo (sobol, stratified) or random."""
    learn: tuple[Literal["weights", "frequencies", "directions"], ...] | None = None
    """Which parts of the feature map are trained."""
    decay: Literal["none", "fixed", "learned", "gated"] = "none"
    """Decay of the linear state: fixed or learned per head, or per token by a learned gate."""
    separate_maps: bool | None = None
    """Give queries and keys separate maps; when not given, only with fourier."""
    mass: Literal["constant", "learned"] = "constant"
    """Scale of a vector's features: one for the whole head (constant), or learned as a function of the vector."""
    calibrate: bool = True
    """Initialise feature maps, their scales and decays in closed form from the teacher's queries and keys."""
    state_update: StateUpdateName | None = None
    """Update rule of the recurrent state: additive sums (linear attention), delta (the gated delta rule, with a
    decay of its own), or retention (sums, with RetNet's fixed decays). By default delta with fourier, else additive."""
    short_conv: int | None = None
    """Kernel size of a causal convolution over queries, keys and values, 0 for none; by default 4 in purely linear
    attention and with the delta rule, otherwise none."""

    def __post_init__(self) -> None:
        for flag, number, least in (("--sinks", self.sinks, 0), ("--window", self.window, 1)):
            if number is not None and number < least:
                raise UserError(f"{number} is out of range", flag)
        if self.exact_total is not None and (self.exact != "auto" or self.exact_total < 0):
            raise UserError("it is a number of pairs, and stands instead of --exact", "--exact-total")
        if self.exact != "auto" and not all(part.strip().isdecimal() for part in self.exact.split(",")):
            raise UserError(f"{self.exact!r} is neither auto nor numbers of pairs", "--exact")
        if self.keep_softmax != "auto" and not self.keep_softmax.isdecimal():
            raise UserError(f"{self.keep_softmax!r} is neither a number of layers nor auto", "--keep-softmax")
        if self.keep_softmax != "0" and self.softmax_layers:
            raise UserError("both --keep-softmax and --softmax-layers are given", fix="leave one of them out")

    @property
    def linear_part(self) -> tuple[str, str]:
        """Feature map and state update, given or chosen: what kept most of the far context."""
        free = self.map is None and self.decay == "none" and self.kernel is None and self.mass == "constant"
        free = free and not self.separate_maps
        if free and self.attention == "hybrid" and self.state_update != "delta":
            return "codebook", self.state_update or "additive"
        chosen = free or (self.map == "fourier" and self.decay == "none")
        update = self.state_update or ("delta" if chosen else "additive")
        return self.map or ("fourier" if update == "delta" and chosen else "dijiang"), update

    def window_of(self, config: ModelConfig) -> int:
        """The hybrid's window in a model: given, or that of its sliding layers, or `WINDOW`."""
        sliding = config.sliding_window or config.window
        return self.window or (sliding if "sliding" in config.attention else WINDOW)

    def exact_of(self, layers: Sequence[int], context: int, window: int, costs: Mapping[int, float]) -> dict[int, int]:
        """Exact pairs of each converted layer: given, the same for all, or by what distant text is worth in it.

        Raises:
            UserError: there are not as many numbers as converted layers.
        """
        if self.exact_total is not None:
            room = max(0, context - window - self.sinks)
            total = min(self.exact_total, room * len(layers))
            if not costs:
                return dict.fromkeys(layers, total // max(1, len(layers)))
            from yeoul.evaluate.layer_costs import shared_out

            return shared_out(costs, total, room)
        if self.exact == "auto":
            return dict.fromkeys(layers, min(MOST_PAIRS, context // PAIRS_SHARE))
        given = [int(part) for part in self.exact.split(",")]
        if len(given) not in (1, len(layers)):
            raise UserError(f"{len(given)} numbers of pairs for {len(layers)} converted layers", "--exact")
        return dict(zip(layers, given * len(layers) if len(given) == 1 else given, strict=True))

    def conversion(
        self,
        teacher: ModelConfig,
        seed: int = 0,
        kept: tuple[int, ...] = (),
        context: int | None = None,
        costs: Mapping[int, float] | None = None,
    ) -> Conversion:
        """The `Conversion` that the settings describe.

        Args:
            teacher: what is converted.
            seed: of the frequencies.
            kept: layers that stay softmax; those of --softmax-layers where it is empty.
            context: tokens of a sequence that is trained on.
            costs: of cutting each converted layer, by which --exact-total is divided; without, alike.

        Raises:
            UserError: --exact does not fit the model.
        """
        from yeoul.adapt.linearize import Conversion
        from yeoul.model.config import FeatureMapConfig

        name, update = self.linear_part
        feature_map = FeatureMapConfig(
            name=name, features=self.features, decay=self.decay, seed=seed,
            kernel=self.kernel, radii=self.radii, sequence=self.sequence, learn=self.learn,  # type: ignore[arg-type]
            separate=name == "fourier" if self.separate_maps is None else self.separate_maps, mass=self.mass,
        )  # fmt: skip
        kept = kept or self.softmax_layers
        layers = [i for i, kind in enumerate(teacher.attention) if kind == "softmax" and i not in kept]
        longest = min(teacher.max_position_embeddings, LONGEST)
        window = self.window_of(teacher)
        pairs = self.exact_of(layers, context or longest, window, costs or {}) if self.attention == "hybrid" else {}
        convolved = self.attention == "dijiang" or update == "delta"
        return Conversion(
            attention=self.attention, window=window, sinks=self.sinks,
            exact=tuple(pairs.get(layer, 0) for layer in range(teacher.num_layers)),
            feature_map=feature_map, keep_softmax=kept, state_update=update,
            short_conv=4 * convolved if self.short_conv is None else self.short_conv, trained_context=context,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """What each stage trains, its learning rate, and its share of the budget."""

    stages: tuple[Literal["align", "distil", "finetune"], ...] = ("align", "distil", "finetune")
    """Stages to run; they divide the whole budget in proportion to their shares."""
    align_share: float = 0.1
    """Share of the budget for the first stage."""
    finetune_share: float = 0.0
    """Share of the budget for the last stage, cross-entropy on the text; distillation takes the rest."""
    align_lr: float | None = None
    """Peak learning rate of the feature maps in the first stage; by default 5e-3, or 5e-4 with the codebook map."""
    lr: float | None = None
    """Peak learning rate of the weights in the second stage; by default 1e-4, but above 100 million parameters 1e-5 for
    all weights and 3e-5 for the attention."""
    finetune_lr: float | None = None
    """Peak learning rate in the last stage, likewise."""
    map_lr: float | None = None
    """Peak learning rate of feature maps, gates and convolutions in the second and third stage, likewise: new parts
    have further to go than those taken over from the teacher."""
    train_align: Literal["maps", "attention", "all", "low-rank", "low-rank-all"] = "maps"
    """What alignment trains: feature maps and gates (maps); the whole attention; all weights; or the maps and a
    low-rank part of the attention (low-rank), or of attention and MLPs (low-rank-all)."""
    train_distil: Literal["maps", "attention", "all", "low-rank", "low-rank-all"] | None = None
    """What distillation trains, likewise; by default all, which holds the weights in memory twice, for teacher and
    student, and above 100 million parameters attention."""
    train_finetune: Literal["maps", "attention", "all", "low-rank", "low-rank-all"] | None = None
    """What the last stage trains, likewise."""
    rank: int = 8
    """Rank of the low-rank parts."""
    align_on: Literal["outputs", "hidden"] = "outputs"
    """Align each layer's attention on the teacher's inputs (outputs), or the whole model's hidden states (hidden)."""
    temperature: float = 1.0
    """Temperature of the distillation."""
    distil_positions: float | None = None
    """Share of the positions at which distillation compares predictions, half of them any, half drawn by how far the
    student is from the teacher there; by default all, but an eighth with a vocabulary of more than 65,536 tokens, whose
    output layer takes longer than the rest of the model."""
    kl_weight: float = 1.0
    """Weight of the divergence from the teacher in distillation; the rest is cross-entropy on the text."""
    recall_share: float | None = None
    """Share of distillation's sequences that are made to end with questions about their beginning; when not given, 0,
    but 0.2 above 100 million parameters where a layer keeps exact pairs."""

    def __post_init__(self) -> None:
        shares = {"align": self.align_share, "finetune": self.finetune_share, "recall": self.recall_share or 0.0}
        for flag, share in ((f"--{name}-share", share) for name, share in shares.items()):
            if not 0 <= share <= 1:
                raise UserError(f"{share} is not a share between 0 and 1", flag)
        if self.align_share + self.finetune_share > 1:
            raise UserError("the shares of the stages add up to more than 1", "--align-share, --finetune-share")
        if not self.stages:
            raise UserError("there is no stage to run", "--stages", f"choose from {', '.join(get_args(Stage))}")
        for flag, value, ok in (
            ("--rank", self.rank, self.rank >= 1), ("--temperature", self.temperature, 0 < self.temperature < 1000),
            ("--kl-weight", self.kl_weight, 0 <= self.kl_weight <= 1),
            ("--map-lr", self.map_lr, self.map_lr is None or 0 < self.map_lr < 100),
            ("--distil-positions", self.distil_positions, 0 < self.positions(0) <= 1),
        ):  # fmt: skip
            if not ok:
                raise UserError(f"{value} is out of range", flag)

    @property
    def trained(self) -> dict[Stage, Trained]:
        """What each stage trains: of small models, unless it is given."""
        return {
            "align": self.train_align, "distil": self.train_distil or "all", "finetune": self.train_finetune or "all",
        }  # fmt: skip

    def positions(self, vocabulary: int) -> float:
        """Share of the positions at which distillation compares predictions."""
        if self.distil_positions is not None:
            return self.distil_positions
        return FEW_POSITIONS if vocabulary > LARGE_VOCABULARY else 1.0

    @property
    def shares(self) -> dict[Stage, float]:
        """Of the budget."""
        rest = 1 - self.align_share - self.finetune_share
        return {"align": self.align_share, "distil": rest, "finetune": self.finetune_share}

    @property
    def trains_all(self) -> bool:
        """Whether a stage trains all weights, so that they are in memory five times."""
        return any(self.trained[stage] == "all" and self.shares[stage] > 0 for stage in self.stages)

    def plan(self, budget: int, common: TrainConfig) -> dict[Stage, TrainConfig]:
        """Settings of the stages that get at least one step, in order.

        Args:
            budget: tokens of all of them together.
            common: what they share.

        Raises:
            UserError: no stage gets a step.
        """
        rates: dict[Stage, float] = {
            "align": self.align_lr or MAP_RATE, "distil": self.lr or RATE, "finetune": self.finetune_lr or RATE,
        }  # fmt: skip
        budgets = [(stage, share, rates[stage]) for stage, share in self.shares.items() if stage in self.stages]
        if not any(share for _, share, _ in budgets):
            raise UserError(
                "the chosen stages have no share of the budget", "--stages", "give --finetune-share or --align-share"
            )
        total = sum(share for _, share, _ in budgets)
        planned: dict[Stage, TrainConfig] = {}
        for stage, share, lr in budgets:
            # A budget is not overspent.
            steps = int(budget * share / total) // common.tokens_per_step if share > 0 else 0
            if steps:
                tokens = steps * common.tokens_per_step
                planned[stage] = replace(common, tokens=tokens, lr=lr)
        if not planned:
            raise UserError(
                f"a budget of {budget:,} tokens is less than one step of {common.tokens_per_step:,} in any stage",
                "--tokens", "give more, or a smaller --batch-size or --context",
            )  # fmt: skip
        return planned


@dataclass(frozen=True, kw_only=True)
class LinearizeTraining(TrainHabits):
    """How the stages are trained: `TrainConfig` without the settings that the budget decides."""

    batch_size: int | None = None  # type: ignore[assignment]
    """Sequences per step; when not given, 8, but above 100 million parameters fewer if the budget has less than 500
    such steps."""
    context: int | None = None
    """Tokens per sequence; when not given, the model's own length, but at most 2,048, or less if nothing else fits into
    memory."""
    warmup: float = 0.05
    """Share of a stage's steps in which the learning rate rises linearly."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; embeddings, norms and biases have none."""
    patience: int | None = None  # type: ignore[assignment]
    """Steps between checks whether a stage still improves; a fifth of the stage when not given, 0 for no checks."""
    seed: int = 0
    """Seed of frequencies and of the order of the data."""
    eval_every: int = 0
    """Steps between validations within a stage; 0 validates only at its end."""
    save_every: int = 100
    """Steps between checkpoints."""
    log_every: int = 5
    """Steps between lines of metrics.jsonl."""
    keep_last: int = 1
    """Newest checkpoints of a stage to keep; the best by validation loss is kept beside them."""

    def __post_init__(self) -> None:
        if any(given is not None and given < least for given, least in ((self.batch_size, 1), (self.context, 2))):
            raise UserError("a step needs at least one sequence of two tokens", "--batch-size, --context")
        self.common(2)  # raises where a value is out of range

    def common(self, context: int, parameters: int = 0, budget: int = 0) -> TrainConfig:
        """What all stages share, in sequences of so many tokens, of a model of so many parameters and for a budget."""
        habits = {f.name: getattr(self, f.name) for f in fields(TrainHabits)}
        few = max(1, min(BATCH, budget // (LARGE_STEPS * context)))
        batch = self.batch_size or (few if parameters > LARGE else BATCH)
        return TrainConfig(**(habits | {"patience": self.patience or 0, "batch_size": batch}), context=context)

    def patient(self, planned: Mapping[Stage, TrainConfig]) -> dict[Stage, TrainConfig]:
        """The stages' settings with the patience that is given, or a fifth of each."""
        if self.patience is not None:
            return dict(planned)
        return {stage: replace(s, patience=max(LEAST_PATIENCE, s.steps // 5)) for stage, s in planned.items()}


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What is measured during training and at the end."""

    RENAMED: ClassVar[Mapping[str, str]] = {"judge_tokens": "compare_tokens"}

    val_tokens: int | None = None
    """Score at most this many tokens in one validation; when not given, a tenth of the budget, but at least 4,096 and
    at most 200,000."""
    contexts: tuple[int, ...] = (512, 2048, 8192)
    """Contexts at which tokens per second and cache are measured at the end."""
    compare_tokens: int | None = None
    """Held-out tokens on which the result is compared with the teacher and with the teacher cut to the window (gain
    from long context, recall, free generation); 0 for no comparison; by default a quarter of the validation tokens."""

    def __post_init__(self) -> None:
        for flag, value, least in (("--compare-tokens", self.compare_tokens, 0), ("--val-tokens", self.val_tokens, 1)):
            if value is not None and value < least:
                raise UserError(f"{value} is out of range", flag)

    def validation(self, budget: int) -> int:
        """Tokens of a validation: it should take no longer than the training that it is for."""
        if self.val_tokens is not None:
            return self.val_tokens
        return min(LARGEST_VALIDATION, max(LEAST_VALIDATION, budget // 10))

    def comparison(self, budget: int) -> int:
        """Tokens of the comparison at the end."""
        chosen = replace(self, val_tokens=None).validation(budget) // 4
        return chosen if self.compare_tokens is None else self.compare_tokens


@dataclass(frozen=True, kw_only=True)
class LinearizeConfig(Settings):
    """Settings of `yeoul.linearize`.

    `LinearizeConfig.of(window=128, tokens=500_000)` takes settings by flag name.
    """

    tokens: int | None = None
    """Token budget of all stages together; when not given, 2,000,000, but at most four passes over the text."""
    teacher_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the teacher's weights and the student's frozen weights; auto: bfloat16 if both compute and checkpoint
    are bfloat16, else float32."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the saved weights; auto keeps the checkpoint's."""
    conversion: Annotated[ConversionOptions, Parameter(name="*")] = field(default_factory=ConversionOptions)
    """What becomes of the softmax layers."""
    training: Annotated[StageOptions, Parameter(name="*")] = field(default_factory=StageOptions)
    """The stages."""
    habits: Annotated[LinearizeTraining, Parameter(name="*")] = field(default_factory=LinearizeTraining)
    """How they are trained."""
    text: Annotated[TextOptions, Parameter(name="*")] = field(default_factory=TextOptions)
    """The text."""
    scoring: Annotated[ScoreOptions, Parameter(name="*")] = field(default_factory=ScoreOptions)
    """What is measured."""

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise UserError(f"--tokens is {self.tokens}, but must be at least one step's tokens")

    def planned(self, budget: int, context: int, parameters: int = 0) -> dict[Stage, TrainConfig]:
        """Settings of the stages, in order, for a budget in tokens and sequences of so many, of a model of so many
        parameters."""
        return self.habits.patient(
            self.stages(parameters).plan(budget, self.habits.common(context, parameters, budget))
        )

    def stages(self, parameters: int) -> StageOptions:
        """The stages with what is given of their learning rates and of what they train, and the rest by feature map
        and size of the model."""
        maps = CODEBOOK_RATE if self.conversion.linear_part[0] == "codebook" else MAP_RATE
        given, large = self.training, parameters > LARGE
        usual: Trained = "attention" if large else "all"
        distil, finetune = given.train_distil or usual, given.train_finetune or usual
        recall = given.recall_share
        if recall is None:
            pairs = self.conversion.exact != "0" and self.conversion.exact_total != 0
            keeps = self.conversion.attention == "hybrid" and pairs
            recall = LARGE_RECALL if large and keeps else 0.0
        rates = LARGE_RATES if large else {}
        return replace(
            given, align_lr=given.align_lr or maps, map_lr=given.map_lr or maps, train_distil=distil,
            train_finetune=finetune, lr=given.lr or rates.get(distil, RATE),
            finetune_lr=given.finetune_lr or rates.get(finetune, RATE), recall_share=recall,
        )  # fmt: skip
