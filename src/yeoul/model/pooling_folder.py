"""How a folder's model makes sentence vectors, in the files of sentence-transformers.

`modules.json` lists what a text goes through: the model, the pooling (`1_Pooling/config.json`), linear layers
(`2_Dense/config.json` and `model.safetensors`), layer norms, the division by the vector's length. What is not known
here is refused by name; so are the settings beside it (`vector_settings`). Which states are pooled is a key of ours in
`1_Pooling/config.json`, "states". sentence-transformers knows only the last ones, so other folders have no
`modules.json`, nor have adapters and models that transformers does not know; there the numbers of the subfolders say
the order.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from yeoul.errors import UserError, shown
from yeoul.files import new_file, write_json
from yeoul.model.config import ModelConfig
from yeoul.model.finite import check_to_save
from yeoul.model.heads import (
    POOLINGS,
    STATES,
    Activation,
    Dense,
    Pooling,
    States,
    TextVectors,
    UnitLength,
    VectorNorm,
    Whitening,
)
from yeoul.model.vector_settings import Reading, read_settings, settings_of
from yeoul.safe_json import read, read_object

FOLDER = "1_Pooling"
MODULES = "modules.json"
WEIGHTS = "model.safetensors"
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last",
}  # fmt: skip
"""Keys of 1_Pooling/config.json that are true, in the order in which their vectors stand side by side."""
_NAMES = {"mean_sqrt_len_tokens": "mean_sqrt_len", "lasttoken": "last"}
"""Ways that the key "pooling_mode" of newer files calls otherwise."""
_POOLING_KEYS = {"word_embedding_dimension", "embedding_dimension", "include_prompt", "pooling_mode", "states", *_FLAGS}
_DENSE_KEYS = {
    "in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name"
}  # fmt: skip
_ACTIVATIONS: dict[str, Activation] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.LeakyReLU": "leaky_relu",
    "torch.nn.modules.activation.ELU": "elu",
    "torch.nn.modules.activation.Softplus": "softplus",
    "torch.nn.modules.activation.Mish": "mish",
}
_LIBRARY = "sentence_transformers."
"""Modules of any other package are code of the folder's."""


def save_vectors(
    folder: Path | str, config: ModelConfig, vectors: TextVectors, *, modules: bool, reading: Reading | None = None
) -> None:
    """Writes 1_Pooling/config.json, a folder for each further layer, modules.json and its settings beside them.

    Args:
        folder: of the model.
        config: its description.
        vectors: how they are made.
        modules: also say what sentence-transformers is to load (vectors of length 1 at the end); not for models that
            transformers does not know. Left out where other states than the last are pooled.
        reading: how texts are read, where another folder said so.
    """
    folder, reading = Path(folder), reading or Reading()
    described: dict[str, Any] = {
        "word_embedding_dimension": vectors.pooled_width(config.hidden_size) // len(vectors.pooling)
    }
    described |= {flag: name in vectors.pooling for flag, name in _FLAGS.items()}
    if vectors.states != "last":
        described["states"] = vectors.states
    if not reading.counts:
        described["include_prompt"] = False
    write_json(folder / FOLDER / "config.json", described)
    kinds = [("Transformer", ""), ("Pooling", FOLDER)]
    for number, layer in enumerate(vectors.layers, start=2):
        kind = {VectorNorm: "LayerNorm", UnitLength: "Normalize"}.get(type(layer), "Dense")
        kinds.append((kind, f"{number}_{kind}"))
        _save_layer(layer.fused() if isinstance(layer, Whitening) else layer, folder / f"{number}_{kind}")
    if not modules or vectors.states != "last":
        return
    if reading.normalize:
        kinds.append(("Normalize", f"{len(kinds)}_Normalize"))
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(kinds)
    ]
    write_json(folder / MODULES, listed)
    for name, values in settings_of(reading, config.max_position_embeddings).items():
        write_json(folder / name, values)


def vectors_of(
    folders: Iterable[Path | str], hidden_size: int, pooling: Pooling | None = None
) -> tuple[TextVectors, Reading] | None:
    """What the first of these folders that says something of vectors says; None where none does. As `load_vectors`."""
    for folder in folders:
        vectors, reading = load_vectors(folder, hidden_size, pooling), load_reading(folder)
        if vectors is not None and reading is not None:
            return vectors, reading
    return None


def load_vectors(folder: Path | str, hidden_size: int, pooling: Pooling | None = None) -> TextVectors | None:
    """What a folder, or the `model/` or `adapter/` of a run, says of its vectors; None where it says nothing.

    Args:
        folder: see above.
        hidden_size: of its model.
        pooling: goes before what the folder says.

    Raises:
        UserError: a pooling, a state, an activation or a module that is not known here; damaged files.
    """
    place = _place(folder)
    if place is None:
        return None
    listed = (place / MODULES).is_file()
    described, layers, _ = _listed(place) if listed else _numbered(place)
    states: States = "last"
    ways: tuple[Pooling, ...] = (pooling or "mean",)
    if described is not None and described.is_file():
        values = read_object(described)
        states = _states(values, described)
        ways = _poolings(values, described, listed) if pooling is None else (pooling,)
    vectors = TextVectors(ways, states)
    width = vectors.pooled_width(hidden_size)
    for kind, path in layers:
        if kind == "Normalize":
            vectors.layers.append(UnitLength())
            continue
        layer = _load_dense(path, width) if kind == "Dense" else _load_norm(path, width)
        vectors.layers.append(layer)
        width = layer.width
    return vectors.eval()


def load_reading(folder: Path | str) -> Reading | None:
    """How texts are read and vectors compared, in the same place; None where it says nothing of vectors.

    Raises:
        UserError: a setting that is not known here; damaged files.
    """
    place = _place(folder)
    if place is None:
        return None
    has_list = (place / MODULES).is_file()
    described, _, normalize = _listed(place) if has_list else _numbered(place)
    values = read_object(described) if described is not None and described.is_file() else {}
    counts = bool(values.get("include_prompt", True))
    return read_settings(place, counts=counts, normalize=normalize) if has_list else Reading(counts=counts)


def _place(folder: Path | str) -> Path | None:
    places = (Path(folder), Path(folder) / "model", Path(folder) / "adapter")
    return next(
        (place for place in places if any((place / f).is_file() for f in (MODULES, f"{FOLDER}/config.json"))), None
    )


_Layers = list[tuple[str, Path]]


def _numbered(place: Path) -> tuple[Path, _Layers, bool]:
    """The description of the pooling, the further layers by their numbers, and whether vectors get length 1."""
    found = [
        (path.name.partition("_")[2], path)
        for kind in ("Dense", "LayerNorm") for path in place.glob(f"*_{kind}") if path.name.partition("_")[0].isdigit()
    ]  # fmt: skip
    return place / FOLDER / "config.json", sorted(found, key=lambda one: int(one[1].name.partition("_")[0])), True


def _listed(place: Path) -> tuple[Path | None, _Layers, bool]:
    """The same, as modules.json says."""
    file = place / MODULES
    listed = read(file)
    try:
        modules = [(str(m["type"]), PurePosixPath(m["path"])) for m in listed]
    except (TypeError, KeyError):
        raise UserError("the file lists no modules with their types and paths", file) from None
    described: Path | None = None
    layers: _Layers = []
    for number, (kind, path) in enumerate(modules):
        name = kind.rpartition(".")[2]
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"the path {shown(str(path))} leads out of the folder", file)
        if not kind.startswith(_LIBRARY):
            raise UserError(f"the module {shown(kind)} is not one of sentence-transformers", file)
        if name == "Transformer" and number == 0:
            if path.parts:
                raise UserError(f"the model lies in {shown(str(path))}, not beside this file", file)
        elif name == "Pooling" and described is None and not layers:
            described = place / path / "config.json"
        elif name in ("Dense", "LayerNorm", "Normalize") and described is not None:
            layers.append((name, place / path))
        elif name != "Dropout":
            raise UserError(f"the module {shown(name)} in place {number} is not supported", file)
    if described is None:
        raise UserError("there is no pooling among the modules", file)
    normalize = bool(layers) and layers[-1][0] == "Normalize"
    return described, layers[:-1] if normalize else layers, normalize


def _poolings(values: dict[str, Any], file: Path, listed: bool) -> tuple[Pooling, ...]:
    """The ways of a description.

    Where it says nothing of the mean, that is one of them in a folder that sentence-transformers opens (`listed` in
    modules.json), because the library takes it so; elsewhere only where no other way is named.
    """
    for key in sorted(values.keys() - _POOLING_KEYS):
        raise UserError(f"the setting {shown(key)} of the pooling is not supported", file)
    given = values.get("pooling_mode")
    if given is None:
        named = any(values.get(flag) for flag in _FLAGS)
        flags = {"pooling_mode_mean_tokens": listed or not named} | values
        names: Any = [name for flag, name in _FLAGS.items() if flags.get(flag)]
    else:
        names = [given] if isinstance(given, str) else given
        names = [_NAMES.get(str(name).lower(), name) for name in names] if isinstance(names, list) else []
    if not names or not set(names) <= set(POOLINGS):
        raise UserError(f"the pooling {shown(given or names)} is not supported", file, "choose one with --pooling")
    return tuple(way for way in POOLINGS if way in names)


def _states(values: dict[str, Any], file: Path) -> States:
    states: States = values.get("states", "last")
    if states not in STATES:
        raise UserError(f"the states {shown(states)} are not known", file)
    return states


def _save_layer(layer: nn.Module, folder: Path) -> None:
    if isinstance(layer, UnitLength):
        folder.mkdir(parents=True, exist_ok=True)
        return
    if isinstance(layer, Dense):
        linear = layer.linear
        write_json(folder / "config.json", {
            "in_features": linear.in_features, "out_features": linear.out_features, "bias": linear.bias is not None,
            "activation_function": next(name for name, ours in _ACTIVATIONS.items() if ours == layer.activation),
        })  # fmt: skip
    elif isinstance(layer, VectorNorm):
        write_json(folder / "config.json", {"dimension": layer.width})
    tensors = {name: p.detach().float().contiguous().cpu() for name, p in layer.named_parameters()}
    check_to_save(tensors.items(), folder)
    with new_file(folder / WEIGHTS) as beside:
        save_file(tensors, beside, metadata={"format": "pt"})


def _load_dense(folder: Path, width: int) -> Dense:
    """A linear layer for vectors of so many numbers."""
    file = folder / "config.json"
    values = read_object(file)
    size, result = values.get("in_features"), values.get("out_features")
    name = values.get("activation_function", "torch.nn.modules.activation.Tanh")
    if size != width or not isinstance(result, int) or result < 1:
        raise UserError(f"the layer goes from {shown(size)} to {shown(result)} numbers, but gets {width}", file)
    if name not in _ACTIVATIONS:
        raise UserError(f"the activation {shown(name)} is not supported", file)
    if any(values.get(f"module_{way}put_name") not in (None, "sentence_embedding") for way in ("in", "out")):
        raise UserError("a layer of anything but the sentence's vector is not supported", file)
    for key in sorted(values.keys() - _DENSE_KEYS):
        raise UserError(f"the setting {shown(key)} of the layer is not supported", file)
    layer = Dense(width, result, bias=bool(values.get("bias", True)), activation=_ACTIVATIONS[name])
    return _with_weights(layer, folder)


def _load_norm(folder: Path, width: int) -> VectorNorm:
    """A layer norm of vectors of so many numbers."""
    values = read_object(folder / "config.json")
    if values != {"dimension": width}:
        raise UserError(f"{shown(values)} is no layer norm of {width} numbers", folder / "config.json")
    return _with_weights(VectorNorm(width), folder)


L = TypeVar("L", bound=nn.Module)


def _with_weights(layer: L, folder: Path) -> L:
    if not (folder / WEIGHTS).is_file():
        fix = "save it as safetensors first" if (folder / "pytorch_model.bin").exists() else ""
        raise UserError(f"no {WEIGHTS} in this folder", folder, fix)
    try:
        tensors = load_file(folder / WEIGHTS)
        layer.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the layer cannot be read: {reason}", folder / WEIGHTS) from None
    return layer
