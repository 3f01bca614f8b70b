"""Templates that want too much, and the limits of the sandbox."""

from __future__ import annotations

from typing import Any

import pytest

from yeoul.errors import UserError
from yeoul.text.template import from_message, render

MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "안녕 {0} %s"},
    {"role": "assistant", "content": "x" * 1000},
]
DOUBLING = (
    "{% set ns = namespace(a='x') %}{% for i in range(100) %}{% set ns.a = GROW %}{% endfor %}{{ ns.a | length }}"
)
NESTED = "{% set ns = namespace(a=[1]) %}{% for i in range(100) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}"
LARGE = "{% set r = range(99999) | list %}{% for i in range(99999) %}WORK{% endfor %}"
LONG = "{% set ns = namespace(a='ab' * 1000000) %}{% for i in range(99999) %}WORK{% endfor %}"
HOSTILE = {
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a loop that filters": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "a loop that calls itself": "{% for m in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "a tree of loops": "{% for m in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 40 }}{% endfor %}",
    "a macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a long range": "{{ range(10 ** 15) | list }}",
    "a wide number": "{{ '%1000000000d' % 1 }}",
    "a precise number": "{{ '%.1000000000f' % 1 }}",
    "a width as an argument": "{{ '%*d' % (1000000000, 1) }}",
    "a wide field": "{{ '{:1000000000}'.format(1) }}",
    "a field within a field": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "a wide filter": "{{ '%1000000000d' | format(1) }}",
    "a product": "{{ 'x' * 10 ** 10 }}",
    "a product of a constant": "{{ 'x' * 10000000000 }}",
    "a product of a list": "{{ [0] * 10000000000 }}",
    "a product from the left": "{{ 10000000000 * 'x' }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "squares": DOUBLING.replace("'x'", "3").replace("GROW", "ns.a * ns.a").replace("| length", ""),
    "doubling by ~": DOUBLING.replace("GROW", "ns.a ~ ns.a"),
    "doubling by +": DOUBLING.replace("GROW", "ns.a + ns.a"),
    "doubling by join": DOUBLING.replace("GROW", "[ns.a, ns.a] | join"),
    "doubling by its method": DOUBLING.replace("GROW", "'-'.join([ns.a, ns.a])"),
    "doubling by replace": DOUBLING.replace("GROW", "ns.a.replace('x', 'xx')"),
    "doubling by the filter": DOUBLING.replace("GROW", "ns.a | replace('x', 'xx')"),
    "doubling by format": DOUBLING.replace("GROW", "'{0}{0}'.format(ns.a)"),
    "doubling by %": DOUBLING.replace("GROW", "'%s%s' % (ns.a, ns.a)"),
    "doubling by a block": DOUBLING.replace(
        "{% set ns.a = GROW %}", "{% set b %}{{ ns.a }}{{ ns.a }}{% endset %}{% set ns.a = b %}"
    ),
    "doubling of a list": DOUBLING.replace("'x'", "[1]").replace("GROW", "ns.a + ns.a"),
    "many lines moved": "{{ ('a\n' * 100000) | indent(9999) | length }}",
    "a deep value in JSON": "{% set ns = namespace(a=range(99999) | list) %}{% for i in range(200) %}"
    "{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a | tojson(indent=9999) | length }}",
    "center": "{{ 'x' | center(1000000000) }}",
    "center by its method": "{{ 'x'.center(1000000000) }}",
    "ljust": "{{ 'x'.ljust(1000000000) }}",
    "zfill": "{{ 'x'.zfill(1000000000) }}",
    "indent": "{{ 'x\n' | indent(1000000000, true) }}",
    "tojson": "{{ [1] | tojson(indent=1000000000) }}",
    "batch": "{{ [1] | batch(1000000000, 0) | list }}",
    "slice": "{{ [1] | slice(1000000000) | list }}",
    "round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "a tree shown": NESTED + "{{ ns.a }}",
    "a tree in JSON": NESTED + "{{ ns.a | tojson }}",
    "a tree as a text": NESTED + "{{ ns.a | string | length }}",
    "a tree in a format": NESTED + "{{ '%s' % [ns.a] }}",
    "a tree joined": NESTED + "{{ 'x' ~ ns.a }}",
    "trees compared": NESTED + "{% set b = ns.a %}{{ [ns.a] == [b, b] or [ns.a, 1] == [[b, b], 1] }}",
    "a tree hashed": NESTED.replace("[1]", "1").replace("[ns.a, ns.a]", "(ns.a, ns.a)") + "{{ {ns.a: 1} }}",
    "a tree as a key": NESTED.replace("[1]", "1").replace("[ns.a, ns.a]", "(ns.a, ns.a)") + "{{ {}[ns.a] }}",
    "a namespace in itself": "{% set ns = namespace() %}{% set ns.a = [ns, ns] %}{{ ns }}",
    "search in a list": LARGE.replace("WORK", "{{ 'a' in r }}"),
    "sums": LARGE.replace("WORK", "{{ r | sum }}"),
    "sorts": LARGE.replace("WORK", "{% set s = r | sort %}"),
    "lists compared": LARGE.replace("WORK", "{{ r == r + [1] }}"),
    "index": LARGE.replace("WORK", "{{ r.index(99998) }}"),
    "search in a text": LONG.replace("WORK", "{{ 'c' in ns.a }}"),
    "upper": LONG.replace("WORK", "{% set b = ns.a | upper %}"),
    "backwards": "{% set a = 'a' * 1000000 %}{{ a.rfind('b' ~ a[:500000]) }}{{ a.rsplit('b' ~ a[:500000]) | length }}",
    "stripping": "{% set a = 'a' * 1000000 %}{{ a.strip('b' * 500000 ~ 'a') | length }}",
    "letter by letter": LONG.replace("WORK", "{% for c in ns.a %}{% endfor %}"),
    "a long source": "{{ messages }}" * 100_000,
    "a deep source": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "a deep list": "{{ " + "[" * 5_000 + "]" * 5_000 + " }}",
    "many blocks": "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
    "many ifs": "{% if true %}" * 3_000 + "{% endif %}" * 3_000,
    "bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "encode": "{{ 'x'.encode('utf-8') }}",
    "lipsum": "{{ lipsum(1000000) }}",
    "dates": "{% for i in range(99999) %}{{ strftime_now('%Y' * 99999) }}{% endfor %}",
}  # fmt: skip
FAILING = {
    "division": "{{ 1 / 0 }}",
    "types": "{{ 'a' + 1 }}",
    "overflow": "{{ 2.0 ** 100000 }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "no such key": "{{ messages[7].content }}",
    "an include": "{% include 'other' %}",
    "no such filter": "{{ 'a' | nothing }}",
    "half an expression": "{{ 'a' | }}",
    "a hidden attribute": "{{ messages.__class__.__mro__ }}",
    "an index": "{{ 'abc'.index('z') }}",
    "a separator": "{{ 'abc'.split('') }}",
    "a join": "{{ '-'.join([1]) }}",
    "a format": "{{ '{0.__class__}'.format(1) + 'a' }}{{ '{a}'.format(1) }}",
    "a half format": "{{ '%' % 1 }}",
    "what cannot be hashed": "{{ {[]: 1} }}",
    "a call of a text": "{{ 'a'() }}",
    "a test": "{{ 1 is divisibleby(0) }}",
    "a refusal": "{{ raise_exception('no\x1b[2J') }}",
    "JSON of a function": "{{ range | tojson }}",
}


def messages() -> list[dict[str, Any]]:
    return [{**message, "content": from_message(message["content"], number)} for number, message in enumerate(MESSAGES)]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_in_a_sentence(name: str) -> None:
    """Not a timed assertion: pytest ends what goes on, and a machine without limits runs out of memory."""
    with pytest.raises(UserError, match="chat template"):
        print(len(render(HOSTILE[name], messages(), prompt=True, names={})))


@pytest.mark.parametrize("name", FAILING)
def test_what_fails_is_a_sentence(name: str) -> None:
    with pytest.raises(UserError, match="chat template") as error:
        render(FAILING[name], messages(), prompt=True, names={})
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
