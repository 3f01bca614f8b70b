"""Which feature map a model has, and what was chosen of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from yeoul.errors import UserError, shown
from yeoul.model.feature_maps.registry import FEATURE_MAPS
from yeoul.model.values import check_choice, check_list, is_positive, is_whole

MOST_FEATURES = 2**20


@dataclass(frozen=True, kw_only=True)
class FeatureMapConfig:
    """Feature map of linear attention, see `yeoul.model.feature_maps`. A setting that is None takes the map's default.

    Attributes:
        name: "dijiang" (ours), "performer", "pff", "wpff", "dcf", "wdcf", "dijiang-code" (as the authors of DiJiang
            compute it), "hedgehog", "elu", "cosformer", "codebook", "fourier" (with the delta rule only): the names of
            the files in `yeoul.model.feature_maps`, whose `choices` say which settings each of them takes.
        features: number of features M of a head; None means what the map has by itself.
        directions: "dct"; "random" (uniform on the sphere), "orthogonal" (the same in orthogonal blocks).
        pairs: use every frequency with both signs, which halves the variance of odd terms and keeps features positive.
        radii: distribution of the frequencies: "chi" is that of the norm of a Gaussian vector of the head size
            (what an unbiased estimate of exp(q.k) needs), "normal" a signed scalar normal (the official code).
        sequence: points in (0, 1) behind the radii: "sobol" (quasi-Monte Carlo), "stratified", "random".
        kernel: "softmax" normalises each feature vector to sum 1, a bounded kernel (as the official code; the default
            because it aligned better with a trained teacher); "exp" keeps exp(w.x - |x|^2/2), an estimate of the
            softmax kernel itself.
        learn: which of "weights" (D), "frequencies" (T) and "directions" (C) are trained.
        decay: of additive states: "none"; "fixed" or "learned", one log-decay for each key-value head; "gated", one for
            each token and head, -softplus of a projection of the token (as gated linear attention, arXiv 2312.06635).
        separate: queries and keys have maps of their own, which begin alike (`yeoul.adapt.linear_init` sets them
            apart).
        mass: weight of a vector's features: "constant", or "learned", what `FrequencyFeatureMap` says (kernel "softmax"
            of the frequency maps only).
        seed: seed of directions, "stratified" and "random", and of Sobol's scrambling.
        options: settings that only this map has, by name (`FeatureMap.options` says which); given as a mapping, kept
            as pairs.

    Raises:
        UserError: an unknown name or value, or one that this map does not have.
    """

    name: str = "dijiang"
    features: int | None = None
    directions: str = None  # type: ignore[assignment]  # what is None here is set by __post_init__
    pairs: bool = None  # type: ignore[assignment]
    radii: str = None  # type: ignore[assignment]
    sequence: str = None  # type: ignore[assignment]
    kernel: str = None  # type: ignore[assignment]
    learn: tuple[str, ...] = None  # type: ignore[assignment]
    decay: str = "none"
    separate: bool = False
    mass: str = "constant"
    seed: int = 0
    options: Mapping[str, float] | tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 - the one way into a frozen class
        FEATURE_MAPS.check(self.name)
        kind = FEATURE_MAPS.declared(self.name)
        for setting, allowed in kind.choices.items():
            if getattr(self, setting) is None:
                put(setting, kind.learned if setting == "learn" else allowed[0])
        check_list("learn", self.learn, str)
        put("learn", tuple(self.learn))
        for setting in ("pairs", "separate"):
            if not isinstance(getattr(self, setting), bool):
                raise UserError(f"{setting} must be true or false, not {shown(getattr(self, setting))}")
        if not is_whole(self.seed, 0):
            raise UserError(f"seed must be a whole number, not {shown(self.seed)}")
        check_choice("decay", self.decay, ("none", "fixed", "learned", "gated"))
        check_choice("mass", self.mass, ("constant", "learned"))
        if self.mass == "learned" and not (kind.learns_mass and self.kernel == "softmax"):
            raise UserError(f"the feature map {self.name!r} with kernel {self.kernel!r} has no learned mass")
        for setting, allowed in kind.choices.items():
            value = getattr(self, setting)
            for one in value if setting == "learn" else (value,):
                self._check_setting(setting, one, allowed)
        count = self.features
        if count is not None and (not is_whole(count, 1) or count > MOST_FEATURES or (self.pairs and count % 2)):
            raise UserError(f"features must be positive, and even with pairs, not {shown(count)}")
        put("options", self._checked_options(kind.options))

    def _check_setting(self, setting: str, value: object, allowed: tuple[Any, ...]) -> None:
        if value in allowed:
            return
        everywhere = (FEATURE_MAPS.declared(name).choices[setting] for name in FEATURE_MAPS.names)
        known = list(dict.fromkeys(choice for choices in everywhere for choice in choices))
        if value not in known:
            check_choice(setting, value, allowed or tuple(known))
        fix = f"it takes {' or '.join(map(shown, allowed))}" if allowed else "nothing of it is learned"
        raise UserError(f"{setting} cannot be {shown(value)} in the feature map {self.name!r}", fix=fix)

    def _checked_options(self, defaults: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
        """The options that differ from the map's defaults, sorted."""
        try:
            given = dict(self.options)
        except (TypeError, ValueError):
            raise UserError(f"options must be an object with fields, not {shown(self.options)}") from None
        for name, value in given.items():
            if name not in defaults:
                fix = f"it has {', '.join(defaults)}" if defaults else "it has none"
                raise UserError(f"the feature map {self.name!r} has no option {shown(name)}", fix=fix)
            if not is_positive(value):
                raise UserError(f"{name} must be a positive number, not {shown(value)}")
        return tuple(sorted((name, value) for name, value in given.items() if value != defaults[name]))

    def option(self, name: str) -> float:
        """One of the settings that only this map has."""
        default: float = FEATURE_MAPS.declared(self.name).options[name]
        return dict(self.options).get(name, default)

    def size(self, head_dim: int) -> int:
        """Number of features M for a head of this size."""
        own: int = FEATURE_MAPS.declared(self.name).default_features(head_dim, self.pairs)
        return self.features or own

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values; options only where there are any."""
        values = asdict(self)
        if not values["options"]:
            del values["options"]
        else:
            values["options"] = dict(self.options)
        return values
