"""What a model remembers of a text, in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from yeoul.errors import UserError
from yeoul.infer.engine import generate_ids
from yeoul.infer.generation import Generation
from yeoul.infer.params import SamplingParams
from yeoul.infer.state_file import IDS, load_state, read_text, save_state
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder

GREEDY = SamplingParams(max_tokens=12, temperature=0)
KINDS = {
    "softmax": {"attention": ["softmax"]},
    "sliding": {"attention": ("sliding", "softmax")},
    "dijiang": {"attention": ("dijiang",)},
    "hybrid": {"attention": ("hybrid",), "exact": [4], "sinks": 2, "short_conv": 4},
    "additive": {"attention": ("hybrid",), "state_update": "additive"},
    "kept": {"attention": ("hybrid", "softmax")},
    "lstm": {"attention": ("lstm",)},
    "conv": {"attention": ("conv",)},
}


def model_of(kind: str) -> Decoder:
    torch.manual_seed(1)
    settings = dict(
        vocab_size=60, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, window=8,
        max_position_embeddings=256, initializer_range=0.3,
    )  # fmt: skip
    return Decoder(ModelConfig.from_dict({**settings, **KINDS[kind]})).eval()


def go_on(model: Decoder, state, ids: list[int]) -> list[int]:
    generation = Generation(model, [[*state.ids, *ids]], GREEDY, cache=state.cache.snapshot(), cached=len(state.ids))
    while generation.step():
        pass
    return generation.rows[0].ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [5, 7, 30, 100])
def test_what_follows_is_as_if_the_text_had_been_read_again(kind: str, length: int, tmp_path: Path) -> None:
    model = model_of(kind)
    text, asked = torch.randint(60, (length,)).tolist(), [3, 1, 4]
    state = read_text(model, text)
    save_state(tmp_path / "state", state.cache, text, "mine", {"title": "책"})
    back = load_state(tmp_path / "state", model, "mine")
    assert list(back.ids) == text and back.about == {"title": "책"}
    (whole,) = generate_ids(model, [text + asked], GREEDY)
    for _ in range(2):  # it serves any number of questions
        assert go_on(model, back, asked) == whole
    assert go_on(model, state, asked) == whole


def test_a_linear_models_file_does_not_grow(tmp_path: Path) -> None:
    sizes = {}
    for kind in ("hybrid", "softmax"):
        model = model_of(kind)
        for length in (60, 240):
            state = read_text(model, [1] * length)
            sizes[kind, length] = save_state(tmp_path / "state", state.cache, state.ids, "mine")
    assert sizes["hybrid", 240] - sizes["hybrid", 60] < 4 * 200  # the ids
    assert sizes["softmax", 240] > 3 * sizes["softmax", 60]


def test_states_of_other_models_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    model, path = model_of("hybrid"), tmp_path / "state"
    state = read_text(model, list(range(40)))
    save_state(path, state.cache, state.ids, "mine")
    with pytest.raises(UserError, match="another model"):
        load_state(path, model, "yours")
    with pytest.raises(UserError, match="no such state"):
        load_state(tmp_path / "none", model, "mine")
    whole, header = path.read_bytes(), {"format": "yeoul-state-1", "model": "mine", "about": "{}"}
    tensors = load_file(path)

    def refused(changed: dict[str, torch.Tensor]) -> None:
        save_file(changed, path, header)
        with pytest.raises(UserError, match="damaged"):
            load_state(path, model, "mine")

    name = next(name for name in tensors if name != IDS)
    refused({key: value for key, value in tensors.items() if key != name})
    refused({key: value for key, value in tensors.items() if key != IDS})
    refused({**tensors, "more": torch.zeros(1)})
    for name, tensor in tensors.items():
        if name != IDS:
            refused({**tensors, name: torch.cat((tensor, tensor), -1)})
            refused({**tensors, name: tensor.to(torch.float64) if tensor.dtype != torch.float64 else tensor.float()})
    refused({**tensors, IDS: torch.tensor([0, 99], dtype=torch.int32)})
    refused({**tensors, IDS: torch.tensor([], dtype=torch.int32)})
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError):
            load_state(path, model, "mine")
    for place in range(0, min(len(whole), 600), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            load_state(path, model, "mine")
        except UserError:
            pass


def test_a_text_that_is_empty_or_too_long_is_refused() -> None:
    model = model_of("softmax")
    for ids in ([], [1] * 256):
        with pytest.raises(UserError):
            read_text(model, ids)
