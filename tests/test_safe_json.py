"""Every JSON file is read within bounds, or refused in one sentence that names it."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yeoul.errors import UserError
from yeoul.safe_json import (
    DEEPEST,
    LARGEST,
    LONGEST_NUMBER,
    MOST_VALUES,
    JSONError,
    parse,
    parse_object,
    read,
    read_bytes,
    read_object,
)
from yeoul.units import size

BAD: dict[str, tuple[bytes, str]] = {
    "nested by far too deep": (b"[" * 200_000 + b"]" * 200_000, "is nested too deeply"),
    "deep objects": (b'{"a":' * 5000 + b"1" + b"}" * 5000, "is nested too deeply"),
    "a little too deep": (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "is nested too deeply"),
    "number": (b'{"a": ' + b"9" * 10_000 + b"}", "has a number of 10,000 digits"),
    "large float": (b'{"a": 1e999}', "has the number 1e999, which is too large"),
    "NaN": (b'{"a": NaN}', "has NaN in the place of a number"),
    "infinity": (b"[-Infinity]", "has -Infinity in the place of a number"),
    "two values": (b'{"a": 1, "b": 2, "a": 3}', "has the key 'a' twice, with different values"),
    "empty": (b"", "is empty"),
    "only a mark": (b"\xef\xbb\xbf \n", "is empty"),
    "CP949": ('{"a": "가나다"}'.encode("cp949"), "is not UTF-8 text at byte 7"),
    "no JSON": (b'{"a": 1,\n "b" 2}', r"is not JSON: Expecting ':' delimiter \(line 2, character 6\)"),
    "half": (b'{"a": [1, 2', "is not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_with_the_file(name: str, tmp_path: Path) -> None:
    data, reason = BAD[name]
    with pytest.raises(JSONError, match=f"^it {reason}"):
        parse(data)
    file = tmp_path / "config.json"
    file.write_bytes(data)
    with pytest.raises(UserError, match=rf"^the file {reason}.*config\.json\); copy or download it again\.$"):
        read_object(file)


@pytest.mark.parametrize("data", [b"[1]", b'"a"', b"null", b"3"])
def test_the_value_has_to_be_an_object(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(JSONError, match="is not a JSON object"):
        parse_object(data)
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UserError, match=r"the file is not a JSON object \(.*a\.json\); train again"):
        read_object(tmp_path / "a.json", fix="train again")
    assert read(tmp_path / "a.json") == json.loads(data)


def test_bounds_are_those_that_they_say() -> None:
    assert parse(b"[" * DEEPEST + b"]" * DEEPEST)
    assert parse("1" * LONGEST_NUMBER) == int("1" * LONGEST_NUMBER)
    assert math.isfinite(float(parse("9" * LONGEST_NUMBER)))
    assert parse('{"a": [1, 2], "b": 1, "a": [1, 2]}') == {"a": [1, 2], "b": 1}
    assert parse(b'"' + b"[" * 500 + b'"') == "[" * 500
    with pytest.raises(JSONError, match="holds more than 3 values"):
        parse("[1, 2, 3, 4]", most_values=3)


def test_what_python_wrote_is_read_where_that_is_asked_for() -> None:
    found = parse(json.dumps({"loss": math.nan, "best": math.inf, "least": -math.inf}), finite=False)
    assert math.isnan(found["loss"]) and (found["best"], found["least"]) == (math.inf, -math.inf)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes('{"이름": "여울"}'.encode(encoding))
    assert read_object(tmp_path / "c.json") == {"이름": "여울"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)  # fmt: skip


@given(value=VALUES, ascii_only=st.booleans())
def test_whatever_is_written_is_read(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse(text) == value == parse(text.encode())


@given(data=st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_value_or_one_error(data: bytes) -> None:
    try:
        parse(data)
    except JSONError as error:
        assert "\n" not in str(error)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file \(.*missing\.json\)"):
        read(tmp_path / "missing.json")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "device.json").symlink_to("/dev/zero")
    for name in ("pipe.json", "device.json", "."):
        with pytest.raises(UserError, match="this is not a file"):
            read(tmp_path / name)


def test_large_files_are_not_parsed(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with file.open("wb") as opened:
        opened.truncate(2**40)  # takes no room on the disk
    with pytest.raises(UserError, match=rf"more than {size(LARGEST)}, as none of its kind does \(.*config\.json\)"):
        read(file)
    file.write_bytes(b"[" + b"0," * MOST_VALUES + b"0]")
    with pytest.raises(UserError, match=f"holds more than {MOST_VALUES:,} values"):
        read(file)
    assert read_bytes(file, 2**23) == file.read_bytes()


def test_a_file_made_to_fill_memory_takes_little(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{" + b",".join(b'"%d":{}' % i for i in range(MOST_VALUES // 2)) + b"}")
    (tmp_path / "deep.json").write_bytes(b"[" * LARGEST)
    program = (
        "import sys; from pathlib import Path; from yeoul.errors import UserError; from yeoul.safe_json import read\n"
        "for name in sys.argv[1:]:\n"
        "    try: read(Path(name))\n"
        "    except UserError: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "config.json", "deep.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (2**28, 2**28)),
    )
    assert done.returncode == 0, done.stderr
