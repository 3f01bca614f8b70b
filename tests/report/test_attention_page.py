"""The page of attention maps: what its script unpacks is what was given, and foreign words stay words."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import zlib
from importlib import resources
from typing import Any

import numpy as np
import pytest

from report.reading import foreign, seen
from yeoul.report.attention_page import AttentionPage, LayerMap, ModelMaps, Steps, page_data, render_attention
from yeoul.report.content import Text

T, H = 9, 2


def layer(number: int, *, signed: bool = False, exact: bool = False) -> LayerMap:
    dice = np.random.default_rng(number)
    weights = np.tril(dice.random((H, T, T))).astype(np.float32) ** 4
    if signed:
        weights[1] = np.tril(weights[1] - 0.2)
    part = np.broadcast_to(np.tril(np.full((T, T), 5, dtype=np.uint8)), (H, T, T)).copy()
    if exact:
        part[1, 5, 1] = part[0, 8, 2] = 4
    head: dict[str, Any] = dict(
        distance=1.23456, entropy=2.0, itself=0.1, shares={"state": 1.0}, negative=0.0, total=1.0
    )
    return LayerMap(
        layer=number, kind="hybrid", weights=weights, part=part, statistics=[head, head], state_update="delta",
        window=2, sinks=1, exact=int(exact), own_tap=0.8 if signed else None,
    )  # fmt: skip


def example(**changes: Any) -> AttentionPage:
    tokens = [("<bos>", "", True), ("</script><script>alert(1)</script>", "", False)]
    tokens += [*(("뷁", f"{i}/3", False) for i in (1, 2, 3)), *[("강", "", False)] * 4]
    models = [ModelMaps(name="<b>여울</b>", layers=[layer(0), layer(1, signed=True, exact=True)])]
    return AttentionPage(tokens=tokens, models=models, command="yeoul inspect '<b>'", **changes)


def unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


def weights_of(model: dict[str, Any], number: int) -> np.ndarray:
    """As the page's script does it."""
    own, pairs, data = model["layers"][number], T * (T + 1) // 2, unpacked(model["weights"])
    found = np.zeros((H, T, T))
    for h in range(H):
        start = own["at"] + h * pairs
        codes = np.frombuffer(data[start : start + pairs], dtype=np.uint8).astype(float)
        largest, least, zero = own["ranges"][h]
        above, below = (codes - zero) / (255 - zero), (zero - codes) / max(zero, 1)
        found[h][np.tril_indices(T)] = np.where(codes >= zero, above**2 * largest, -(below**2) * least)
    return found


@pytest.mark.parametrize("number", [0, 1])
def test_weights_survive_eight_bits(number: int) -> None:
    page = example()
    found, given = weights_of(page_data(page)["models"][0], number), page.models[0].layers[number].weights
    assert (given < 0).any() == (number == 1)
    for h in range(H):
        largest, least, zero = page_data(page)["models"][0]["layers"][number]["ranges"][h]
        assert zero == 0 or abs(least**0.5 / zero - largest**0.5 / (255 - zero)) < 0.01
        for sign, most, steps in ((1, largest, 255 - zero), (-1, least, zero)):
            true, read = (np.where(sign * x[h] > 0, sign * x[h], 0) for x in (given, found))
            bound = (np.sqrt(true * most) + most / max(steps, 1) / 4) / max(steps, 1)
            assert (np.abs(read - true)[true > 0] <= bound[true > 0] + 1e-6).all()


@pytest.mark.skipif(shutil.which("node") is None, reason="runs the page's own functions")
@pytest.mark.parametrize("number", [0, 1])
def test_the_script_reads_the_same_weights_and_parts(number: int) -> None:
    page = example()
    model = page_data(page)["models"][0]
    source = resources.files("yeoul.report").joinpath("templates/attention.js").read_text(encoding="utf-8")
    functions = [
        re.search(rf"^function {name}\(.*?^}}", source, re.DOTALL | re.MULTILINE) for name in ("weight", "part")
    ]
    asked = (
        "\n".join(found[0] for found in functions if found)
        + f"""
        var T = {T}, PAIRS = T * (T + 1) / 2, layer = {json.dumps(model["layers"][number])};
        var model = {{ bytes: {list(unpacked(model["weights"]))} }}, read = [];
        for (var h = 0; h < {H}; h++) for (var t = 0; t < T; t++) for (var s = 0; s < T; s++)
          read.push([weight(model, layer, h, t, s), part(model, layer, h, t, s)]);
        console.log(JSON.stringify(read));"""
    )
    done = subprocess.run(["node", "-e", asked], capture_output=True, text=True, check=True)
    read = np.array(json.loads(done.stdout)).reshape(H, T, T, 2)
    np.testing.assert_allclose(read[..., 0], weights_of(model, number), rtol=1e-6, atol=1e-9)
    row, column = np.arange(T)[:, None], np.arange(T)[None]
    place = np.where(column < 1, 3, np.where(row - column < 2, 2, 5)) * (column <= row)
    given = page.models[0].layers[number].part
    np.testing.assert_array_equal(read[..., 1], np.where(given == 4, 4, place))


def test_exact_pairs_are_marked_where_they_are() -> None:
    data = page_data(example())["models"][0]
    own, pairs = data["layers"][1], T * (T + 1) // 2
    assert not data["layers"][0]["hasExact"] and own["hasExact"]
    packed = np.frombuffer(unpacked(data["weights"])[own["at"] + H * pairs :], dtype=np.uint8)
    bits = np.unpackbits(packed, bitorder="little")[: H * pairs].reshape(H, pairs)
    place = lambda t, s: t * (t + 1) // 2 + s  # noqa: E731
    assert bits.sum() == 2 and bits[1, place(5, 1)] and bits[0, place(8, 2)]


def test_words_of_the_text_and_of_models_stay_words() -> None:
    page = render_attention(example())
    assert "<script>alert" not in page and "<b>여울" not in page and "'<b>'" not in page
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert json.loads(found)["tokens"][1]["text"] == "</script><script>alert(1)</script>"
    assert not re.search(r'(src|href)="?http|@import|url\(', page), "one file, complete in itself"


def test_both_languages_are_whole() -> None:
    page = render_attention(example(notes=[Text("The text is cut.", "텍스트를 잘랐습니다.")]))
    for language, words in (("en", "The text is cut."), ("ko", "텍스트를 잘랐습니다.")):
        assert any(text == words for _, text in seen(page, language))
        assert not [text for text in foreign(page, language) if "<b>" not in text and "JavaScript" not in text]


def test_steps_carry_their_numbers() -> None:
    dice = np.random.default_rng(3)
    arrays = {name: dice.standard_normal((T, 12)).astype(np.float32) for name in ("q", "k", "v", "output")}
    square = {name: dice.standard_normal((T, T)).astype(np.float32) for name in ("products", "weights")}
    total = dice.random(T).astype(np.float32)
    steps = Steps(layer=1, head=0, scale=12**-0.5, softcap=None, total=total, **arrays, **square)
    data = page_data(example(steps=steps))["steps"]
    numbers = np.frombuffer(unpacked(data["numbers"]), dtype="<f4")
    assert data["size"] == 12 and data["channels"] == 8
    np.testing.assert_array_equal(numbers[: T * 8].reshape(T, 8), arrays["q"][:, :8])
    np.testing.assert_array_equal(numbers[4 * T * 8 :][: T * T].reshape(T, T), square["products"])
    np.testing.assert_array_equal(numbers[-T:], total)


def test_a_large_map_is_small_in_the_page() -> None:
    """Of 256 tokens a head takes less than its 32,896 weights in bytes and a third more, as base64 does."""
    length = 256
    scores = np.random.default_rng(0).standard_normal((4, length, length)).astype(np.float32) * 3
    scores[:, ~np.tri(length, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    part = np.broadcast_to(np.tri(length, dtype=np.uint8), weights.shape)
    own = LayerMap(layer=0, kind="softmax", weights=weights, part=part, statistics=[{"shares": {}}] * 4)
    page = AttentionPage(tokens=[("가", "", False)] * length, models=[ModelMaps(name="m", layers=[own])])
    assert len(page_data(page)["models"][0]["weights"]) < 4 * length * (length + 1) / 2 * 4 / 3
