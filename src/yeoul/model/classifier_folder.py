"""A classifier and its folder, which is transformers' wherever that has such a model.

`config.json` is the family's with id2label and label2id, and `score.weight` lies beside the decoder's tensors: what
`LlamaForSequenceClassification` and its relatives read, which take the state of the last token before the padding.
They have neither mean pooling nor linear attention: such classifiers are written as Yeoul's own model_type, so that
nothing reads them wrongly. A head that was trained with an adapter lies beside the adapter's two files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from yeoul.errors import UserError, shown
from yeoul.files import new_file, write_json
from yeoul.model.checkpoint import model_folder, one_dtype, published_in_fp32
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder, skeleton
from yeoul.model.families import write_config
from yeoul.model.finite import check_to_save
from yeoul.model.folder import read_description, read_family
from yeoul.model.heads import HEAD_POOLINGS, ClassificationHead, Meaning, SequenceClassifier
from yeoul.model.parameters import fill_absent, fp32_parameters
from yeoul.model.tensor_files import SINGLE, Stored, read_tensors, stored_tensors
from yeoul.model.tensor_names import count_layers, to_ours, to_published
from yeoul.safe_json import read_object

SCORE = "score.weight"
HEAD_WEIGHTS, HEAD_CONFIG = "classification_head.safetensors", "classification_head.json"
"""The head beside an adapter's files."""
ARCHITECTURES = {
    "gpt2": "GPT2ForSequenceClassification",
    "gemma3_text": "Gemma3TextForSequenceClassification",
    "yeoul": "YeoulForSequenceClassification",
}
"""Names of classes that are not those of the language models with another ending."""
_OWN_FIELDS = ("id2label", "label2id", "num_labels", "problem_type", "pooling")
_MEANINGS: dict[str, Meaning] = {
    "single_label_classification": "one", "multi_label_classification": "several", "regression": "values",
}  # fmt: skip
"""What `problem_type` calls the meanings."""
_FOR_PAIRS = ("sentence_transformers", "sbert_ce_default_activation_function")
"""Keys that sentence-transformers' CrossEncoder writes, whose models judge two texts at once."""


def head_folder(folder: Path | str) -> Path | None:
    """Where the head beside an adapter lies: there, or in `adapter/` of a run; None where there is none."""
    places = (Path(folder), Path(folder) / "adapter", Path(folder) / "model")
    return next((place for place in places if (place / HEAD_CONFIG).is_file()), None)


def save_classifier(model: SequenceClassifier, folder: Path | str, *, pad_id: int | None = None) -> None:
    """Writes config.json and model.safetensors, each beside and renamed; the tokenizer is the caller's.

    Args:
        model: without adapters; on any device.
        folder: target, made if need be.
        pad_id: what transformers takes for padding, with which no text may end; None keeps the model's own.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    decoder, head = model.decoder, model.head
    dtype = decoder.output_weight.dtype
    config = decoder.config if pad_id is None else decoder.config.with_(pad_id=pad_id)
    description = write_config(config if head.pooling == "last" else config.with_(family="yeoul"), dtype)
    family = description["model_type"]
    causal = str(description["architectures"][0])
    description["architectures"] = [
        ARCHITECTURES.get(family, causal.removesuffix("ForCausalLM") + "ForSequenceClassification")
    ]
    description |= _label_fields(head.labels, model.meaning) | ({"pooling": head.pooling} if family == "yeoul" else {})
    weights = {name: t.detach() for name, t in decoder.state_dict().items() if not name.startswith("lm_head.")}
    tensors = to_published(weights, config, family) | {SCORE: head.score.weight.detach().to(dtype)}
    _save_tensors(tensors, folder / SINGLE)
    write_json(folder / "config.json", description, indent=2)


def _label_fields(labels: list[str], meaning: Meaning) -> dict[str, Any]:
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": next(name for name, ours in _MEANINGS.items() if ours == meaning),
    }


def load_sequence_classifier(
    path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> SequenceClassifier:
    """A classifier from its folder, in eval mode: of `save_classifier`, or of transformers' sequence classification.

    Its decoder has no output projection of its own: it cannot write.

    Args:
        path: the folder, or that of a run.
        device: where it goes.
        dtype: of the weights; None keeps the file's, or of several `one_dtype`.

    Raises:
        UserError: no classifier, damaged or unknown; tensors that are missing, superfluous or of another shape.
    """
    folder = model_folder(path)
    stored = stored_tensors(folder)
    described = read_description(folder)
    if SCORE not in stored:
        fix = "make one with: yeoul finetune MODEL --task classify --data TABLE"
        raise UserError("this model is no classifier: it has no classification head", folder, fix)
    _check_kind(described, folder)
    family, config = _description(described, stored, folder)
    place = stored[SCORE]
    if len(place.shape) != 2 or place.shape[1] != config.hidden_size:
        raise UserError(f"tensor {SCORE!r} has shape {place.shape}, which does not fit the model", folder)
    labels = _labels(described, place.shape[0], folder)
    meaning = _meaning(described, place.shape[0], folder)
    with torch.device("meta"):
        head = ClassificationHead(config.hidden_size, labels, described.get("pooling", "last"))
    decoder = skeleton(config)
    trained = {name: p.requires_grad for name, p in decoder.named_parameters()}
    dtype = dtype or one_dtype(stored, described, published_in_fp32(decoder, family))
    tensors = _tensors(stored, config, family, torch.device(device), dtype, fp32_parameters(decoder))
    head.load_state_dict({SCORE: tensors.pop(SCORE)}, assign=True)
    fill_absent(tensors, decoder, device)
    _check(tensors, dict(decoder.state_dict()), folder)
    decoder.load_state_dict(tensors, assign=True)
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(trained[name])
    return SequenceClassifier(decoder, head, meaning).eval()


def _check_kind(described: Mapping[str, Any], folder: Path) -> None:
    """UserError for heads that are not there for the class of one text."""
    file = folder / "config.json"
    for key in _FOR_PAIRS:
        if key in described:
            raise UserError(f"the classifier is made for pairs of texts (its {shown(key)} says so)", file)
    for name in described.get("architectures") or ():
        if not str(name).endswith("ForSequenceClassification"):
            raise UserError(f"a model of the kind {shown(name)} does not classify whole texts", file)


def _meaning(described: Mapping[str, Any], count: int, folder: Path) -> Meaning:
    """What transformers' pipeline makes of the logits."""
    file, problem = folder / "config.json", described.get("problem_type")
    if problem is not None and problem not in _MEANINGS:
        raise UserError(f"the problem_type {shown(problem)} is not known", file)
    if count == 1 and problem == "single_label_classification":
        raise UserError("one label alone cannot be one of several (problem_type)", file)
    if count == 1 and problem is None:
        return "several"  # a single label that holds or does not
    return "one" if problem is None else _MEANINGS[problem]


def _description(described: Mapping[str, Any], stored: Mapping[str, Stored], folder: Path) -> tuple[str, ModelConfig]:
    """Family and model; embeddings count as tied, for there is no output projection."""
    if described.get("pooling", "last") not in HEAD_POOLINGS:
        raise UserError(f"pooling cannot be {shown(described['pooling'])}", folder / "config.json")
    plain = {key: value for key, value in described.items() if key not in _OWN_FIELDS}
    family, config = read_family(plain, stored, folder)
    layers = count_layers(stored, family)
    if config.num_layers != layers:
        raise UserError(f"config.json asks for {config.num_layers} layers, the weights have {layers}", folder)
    return family, config.with_(tie_embeddings=True)


def _labels(described: Mapping[str, Any], count: int, folder: Path) -> list[str]:
    """Names by number; transformers' LABEL_0 ... where config.json has none."""
    names, given = described.get("id2label"), described.get("num_labels")
    if given is not None and given != count:
        what = f"num_labels of config.json is {shown(given)}, but {SCORE!r} has {count} classes"
        raise UserError(what, folder / "config.json")
    if names is None:
        return [f"LABEL_{number}" for number in range(count)]
    if not isinstance(names, dict) or set(names) != {str(number) for number in range(count)}:
        what = f"id2label of config.json does not name the {count} classes of {SCORE!r}"
        raise UserError(what, folder / "config.json")
    labels = [str(names[str(number)]) for number in range(count)]
    if len(set(labels)) < count:
        raise UserError("two classes of config.json's id2label have one name", folder / "config.json", "rename one")
    return labels


def _tensors(
    stored: Mapping[str, Stored],
    config: ModelConfig,
    family: str,
    device: torch.device,
    dtype: torch.dtype | None,
    kept: frozenset[str],
) -> dict[str, Tensor]:
    """The folder's tensors under our names, and the head's under its own."""
    tensors: dict[str, Tensor] = {}
    for published, tensor in read_tensors(dict(stored)):
        pairs = [(SCORE, tensor)] if published == SCORE else to_ours(published, tensor, config, family)
        for name, ours in pairs:
            wanted = torch.float32 if name in kept else dtype
            tensors[name] = ours.to(device=device, dtype=wanted).contiguous()
    return tensors


def _check(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path) -> None:
    for name in sorted(expected.keys() | given.keys()):
        if name not in expected:
            raise UserError(f"tensor {shown(name)} does not belong to the model that config.json describes", folder)
        if name not in given:
            raise UserError(f"tensor {shown(name)} of the model that config.json describes is missing", folder)
        if given[name].shape != expected[name].shape:
            shapes = f"{tuple(given[name].shape)}, config.json asks for {tuple(expected[name].shape)}"
            raise UserError(f"tensor {shown(name)} has shape {shapes}", folder)


# -- beside an adapter


def save_head(head: ClassificationHead, folder: Path | str) -> None:
    """Writes the head alone, beside an adapter's files: `HEAD_WEIGHTS` and `HEAD_CONFIG`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _save_tensors({SCORE: head.score.weight.detach()}, folder / HEAD_WEIGHTS)
    write_json(folder / HEAD_CONFIG, {"labels": head.labels, "pooling": head.pooling}, indent=2)


def load_head(folder: Path | str, decoder: Decoder) -> ClassificationHead:
    """What `save_head` wrote, on the decoder's device and in fp32.

    Raises:
        UserError: damaged, or of another model.
    """
    folder = Path(folder)
    described = read_object(folder / HEAD_CONFIG)
    labels, pooling = described.get("labels"), described.get("pooling")
    if (
        not isinstance(labels, list)
        or not all(isinstance(name, str) for name in labels)
        or pooling not in HEAD_POOLINGS
    ):
        raise UserError("labels and pooling of the head are not as they were written", folder / HEAD_CONFIG)
    try:
        weight = load_file(folder / HEAD_WEIGHTS)[SCORE]
    except (SafetensorError, OSError, KeyError) as error:
        raise UserError(f"the head cannot be read: {error}", folder / HEAD_WEIGHTS) from None
    wanted = (len(labels), decoder.config.hidden_size)
    if tuple(weight.shape) != wanted:
        raise UserError(f"the head has shape {tuple(weight.shape)}, the model asks for {wanted}", folder / HEAD_WEIGHTS)
    head = ClassificationHead(decoder.config.hidden_size, labels, pooling)
    head.load_state_dict({SCORE: weight.float()})
    return head.to(decoder.device).eval()


def _save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    check_to_save(tensors.items(), file.parent)
    with new_file(file) as beside:
        save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, beside, metadata={"format": "pt"})
