"""Expressions over module paths: Python's answer, and an end."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yeoul.adapt.lora.config import LoraConfig
from yeoul.adapt.lora.patterns import check_expression, matches
from yeoul.errors import UserError

PATHS = [
    "model.layers.0.self_attn.q_proj", "model.layers.12.mlp.down_proj", "model.embed_tokens", "lm_head",
    "model.visual.blocks.3.attn.qkv", "transformer.h.1.mlp.c_fc", "", "가.나_다",
]  # fmt: skip
EXPRESSIONS = [
    r".*", r".*q_proj", r".*\.(q|k)_proj", r"model\.layers\.([0-9]|1[0-5])\..*", r"(|a|model.*)*", r"(a*)*model.*",
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|down_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|down_proj)))",
    r"^(model)(?!.*(lm_head|output|emb|wte|shared)).*", r"^(?!.*visual).*(?:q_proj|qkv)$", r"[^\W\d]+\.\S*",
    r".*layers\.\d+\.[^.]+\.\w+", r"(?i)MODEL\.LAYERS\..*", r"(?i:Model).*", r".*(?<=mlp\.)down_proj", r".*\Bproj\b.*",
    r".*(?<!mlp\.)\w+_proj", r"model\.layers\.\d{2}\..*", r".+?\.(?P<end>c_fc|lm_head)", r"lm_head|", r"가\..*",
    r"\Amodel.*\Z", r"model[.]layers[.]0[.].*", r"(?x) model . layers .*  # layers", r"\D+",
]  # fmt: skip
HOSTILE = [
    r"(a|a)*b", r"(.*)*(.*)*(.*)*x", r"(.*.*)+x", ".*" * 200 + "x", r"(\w+\.?)+!", r"((\w|\w)*)*!", "(a|a?)" * 50 + "!",
    r"^(?!(\w+\.?)+!).*!", r"(?=(.*.*)*!).*", r"((.{1,30}){1,30})x",
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_answer_is_pythons(expression: str) -> None:
    check_expression(expression)
    for path in PATHS:
        assert matches(expression, path) == (re.fullmatch(expression, path) is not None), path


WORDS = st.sampled_from(["a", "b", ".", r"\.", r"\d", "[ab]", "[^a]", r"\b", "^", "$", "(?=a)", "(?!b)", "(?<=a)"])
TIMES = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "*?"])
TREES = st.recursive(
    WORDS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, TIMES).map(lambda two: f"(?:{two[0]}){two[1]}"),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(TREES, st.text("ab.1", max_size=5))
def test_any_expression(expression: str, path: str) -> None:
    assert matches(expression, path) == (re.fullmatch(expression, path) is not None)


@pytest.mark.parametrize("expression", HOSTILE)
def test_what_would_take_years_ends(expression: str) -> None:
    for path in PATHS:
        assert not matches(expression, path)
    config = LoraConfig(target_modules=expression, rank_pattern={expression: 4}, alpha_pattern={expression: 2})
    assert not config.matches(PATHS[0]) and config.rank(PATHS[0]) == config.r
    assert config.scaling(PATHS[0]) == config.alpha / config.r


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("(a", "is not a regular expression"), ("(" * 5000 + ")" * 5000, "nested too deeply"),
        ("a" * 20_000, "longer than"),
        (r"(a)\1", "back reference"), ("(?:(?:a{1000}){1000}){1000}", "too large"), ("(?:){100000}", "too large"),
        ("a{99999999999999999999}", "is not a regular expression"), ("*", "is not a regular expression"),
    ],
)  # fmt: skip
def test_what_is_refused(expression: str, reason: str) -> None:
    for values in ({"target_modules": expression}, {"exclude_modules": expression}, {"rank_pattern": {expression: 3}}):
        with pytest.raises(UserError, match=reason) as error:
            LoraConfig(**values)  # type: ignore[arg-type]
        assert len(str(error.value)) < 300


def test_lists_of_layers_are_names() -> None:
    config = LoraConfig(target_modules=("q_proj",), layers_to_transform=(0,), layers_pattern=r"model\.layers")
    assert config.matches(PATHS[0]) and not config.matches(PATHS[0].replace("0", "1"))
    with pytest.raises(UserError, match="layers_pattern must name a list of layers"):
        LoraConfig(target_modules=("q_proj",), layers_to_transform=(0,), layers_pattern="(.*.*)*")
    with pytest.raises(UserError, match="more than 10,000 patterns"):
        LoraConfig(rank_pattern={f"layer.{i}": 3 for i in range(10_001)})


def test_ranks_by_the_end_of_a_path() -> None:
    config = LoraConfig(r=8, rank_pattern={"layers.0.self_attn.q_proj": 3, "down.proj": 5, "attn": 7, r".*h\..*": 2})
    assert [config.rank(path) for path in PATHS[:6]] == [3, 5, 8, 8, 8, 2]
