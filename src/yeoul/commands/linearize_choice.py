"""What the flags of `yeoul linearize` choose: which layers stay softmax, which map and state the others get."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from yeoul.commands.linearize import Config
    from yeoul.data.batch import Batch
    from yeoul.model.decoder import Decoder


def kept_layers(
    config: Config, teacher: Decoder, batches: Callable[[], Iterable[Batch]], dtype: torch.dtype
) -> tuple[int, ...]:
    """The layers that stay softmax by `--softmax-layers`, or by what cutting each of them costs."""
    from yeoul.evaluate.layer_costs import layer_costs, layers_to_keep

    if config.keep_softmax == "0":
        return config.softmax_layers
    count = None if config.keep_softmax == "auto" else int(config.keep_softmax)
    costs = layer_costs(teacher, batches, window=config.window, sinks=config.sinks, dtype=dtype)
    kept = layers_to_keep(costs, count)
    print("Cost of a window instead of full softmax in each layer alone, nats per token:")
    print("\n".join(f"  layer {i}: {cost:+.4f}{'  stays softmax' if i in kept else ''}" for i, cost in costs.items()))
    return kept


def conversion(config: Config, kept: tuple[int, ...] = (), context: int | None = None) -> Any:
    """The `Conversion` that the flags describe, with these layers left as softmax, trained on such a context."""
    from yeoul.adapt.linearize import Conversion
    from yeoul.model.config import FeatureMapConfig

    name, update = linear_part(config)
    feature_map = FeatureMapConfig(
        name=name, features=config.features, decay=config.decay, seed=config.seed,
        kernel=config.kernel, radii=config.radii, sequence=config.sequence, learn=config.learn,  # type: ignore[arg-type]
        separate=name == "fourier" if config.separate_maps is None else config.separate_maps, mass=config.mass,
    )  # fmt: skip
    convolved = config.attention == "dijiang" or update == "delta"
    return Conversion(
        attention=config.attention, window=config.window, sinks=config.sinks, feature_map=feature_map,
        keep_softmax=kept or config.softmax_layers, state_update=update,
        short_conv=4 * convolved if config.short_conv is None else config.short_conv, trained_context=context,
    )  # fmt: skip


def linear_part(config: Config) -> tuple[str, str]:
    """Feature map and state update, given or chosen: what kept most of the far context."""
    chosen = config.map in (None, "fourier") and config.decay == "none"
    chosen = chosen and config.kernel is None and config.mass == "constant"
    update = config.state_update or ("delta" if chosen else "additive")
    return config.map or ("fourier" if update == "delta" and chosen else "dijiang"), update
