"""How a folder's model makes sentence vectors, in the files of sentence-transformers.

`modules.json` lists what a text goes through: the model, the pooling (`1_Pooling/config.json`), linear layers
(`2_Dense/config.json` and `model.safetensors`), the division by the vector's length. Which states are pooled is a key
of ours in `1_Pooling/config.json`, "states". sentence-transformers knows only the last ones, so other folders have no
`modules.json`, nor have adapters and models that transformers does not know; there the numbers of the subfolders say
the order.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from yeoul.errors import UserError, shown
from yeoul.files import new_file, write_json
from yeoul.model.config import ModelConfig
from yeoul.model.finite import check_to_save
from yeoul.model.heads import STATES, Activation, Dense, Pooling, States, TextVectors, Whitening
from yeoul.safe_json import read, read_object

FOLDER = "1_Pooling"
MODULES = "modules.json"
WEIGHTS = "model.safetensors"
_MODES: dict[str, Pooling] = {"mean": "mean", "lasttoken": "last"}
_FLAGS = {
    "pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
"""Keys of 1_Pooling/config.json, true for the way that is taken, and its name; newer files have only the name."""
_ACTIVATIONS: dict[str, Activation] = {
    "torch.nn.modules.linear.Identity": "identity", "torch.nn.modules.activation.Tanh": "tanh",
}  # fmt: skip
_UNSEEN = ("Transformer", "Normalize", "Dropout")
"""Modules that have no file which is read here."""


def save_vectors(folder: Path | str, config: ModelConfig, vectors: TextVectors, *, modules: bool) -> None:
    """Writes 1_Pooling/config.json, a folder for each linear layer, and modules.json beside them.

    Args:
        folder: of the model.
        config: its description.
        vectors: how they are made.
        modules: also say what sentence-transformers is to load (vectors of length 1 at the end); not for models that
            transformers does not know. Left out where other states than the last are pooled.
    """
    folder = Path(folder)
    wanted = next(name for name, ours in _MODES.items() if ours == vectors.pooling)
    described: dict[str, Any] = {"word_embedding_dimension": vectors.pooled_width(config.hidden_size)}
    described |= {flag: name == wanted for flag, name in _FLAGS.items()}
    if vectors.states != "last":
        described["states"] = vectors.states
    write_json(folder / FOLDER / "config.json", described)
    kinds = [("Transformer", ""), ("Pooling", FOLDER)]
    for number, layer in enumerate(vectors.layers, start=2):
        kinds.append(("Dense", f"{number}_Dense"))
        _save_dense(layer.fused() if isinstance(layer, Whitening) else layer, folder / f"{number}_Dense")  # type: ignore[arg-type]
    if not modules or vectors.states != "last":
        return
    kinds.append(("Normalize", f"{len(kinds)}_Normalize"))
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(kinds)
    ]
    write_json(folder / MODULES, listed)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": config.max_position_embeddings, "do_lower_case": False},
    )


def load_vectors(folder: Path | str, hidden_size: int, pooling: Pooling | None = None) -> TextVectors | None:
    """What a folder, or the `model/` or `adapter/` of a run, says of its vectors; None where it says nothing.

    Args:
        folder: see above.
        hidden_size: of its model.
        pooling: goes before what the folder says.

    Raises:
        UserError: a pooling, a state, an activation or a module that is not known here; damaged files.
    """
    places = (Path(folder), Path(folder) / "model", Path(folder) / "adapter")
    place = next(
        (place for place in places if any((place / f).is_file() for f in (MODULES, f"{FOLDER}/config.json"))), None
    )
    if place is None:
        return None
    described, dense = _listed(place) if (place / MODULES).is_file() else _numbered(place)
    states: States = "last"
    if described is not None and described.is_file():
        values = read_object(described)
        states, pooling = _states(values, described), pooling or _pooling(values, described)
    vectors = TextVectors(pooling or "mean", states)
    width = vectors.pooled_width(hidden_size)
    for path in dense:
        vectors.layers.append(layer := _load_dense(path, width))
        width = layer.linear.out_features
    return vectors.eval()


def _numbered(place: Path) -> tuple[Path, list[Path]]:
    """The description of the pooling, and the folders of the linear layers, by their numbers."""
    found = [path for path in place.glob("*_Dense") if path.name.partition("_")[0].isdigit()]
    return place / FOLDER / "config.json", sorted(found, key=lambda path: int(path.name.partition("_")[0]))


def _listed(place: Path) -> tuple[Path | None, list[Path]]:
    """The same, as modules.json says."""
    file = place / MODULES
    listed = read(file)
    try:
        modules = [(str(m["type"]).rpartition(".")[2], PurePosixPath(m["path"])) for m in listed]
    except (TypeError, KeyError):
        raise UserError("the file lists no modules with their types and paths", file) from None
    described, dense, done = None, list[Path](), False
    for kind, path in modules:
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"the path {shown(str(path))} leads out of the folder", file)
        if kind == "Pooling":
            described = place / path / "config.json"
        elif kind == "Dense" and not done:
            dense.append(place / path)
        elif kind not in _UNSEEN:
            where = " behind Normalize" if kind == "Dense" else ""
            raise UserError(f"the module {shown(kind)}{where} is not supported", file)
        done = done or kind == "Normalize"
    return described, dense


def _pooling(values: dict[str, Any], file: Path) -> Pooling:
    names = values.get("pooling_mode") or [name for flag, name in _FLAGS.items() if values.get(flag)]
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or len(names) != 1 or names[0] not in _MODES:
        raise UserError(f"the pooling {shown(names)} is not supported", file, "choose one with --pooling")
    return _MODES[names[0]]


def _states(values: dict[str, Any], file: Path) -> States:
    states: States = values.get("states", "last")
    if states not in STATES:
        raise UserError(f"the states {shown(states)} are not known", file)
    return states


def _save_dense(layer: Dense, folder: Path) -> None:
    linear = layer.linear
    activation = next(name for name, ours in _ACTIVATIONS.items() if ours == layer.activation)
    write_json(folder / "config.json", {
        "in_features": linear.in_features, "out_features": linear.out_features, "bias": linear.bias is not None,
        "activation_function": activation,
    })  # fmt: skip
    tensors = {f"linear.{name}": p.detach().float().contiguous().cpu() for name, p in linear.named_parameters()}
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
    layer = Dense(width, result, bias=bool(values.get("bias", True)), activation=_ACTIVATIONS[name])
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
