"""A dataclass as flags, as YAML and as help; every mistake is one sentence."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_type_hints

import pytest
import yaml
from cyclopts import Parameter
from hypothesis import given, settings
from hypothesis import strategies as st

from yeoul.config import Place, flat_values, load_config, parse_flags, save_config
from yeoul.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How to step."""

    lr: float = 1e-3
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Shape over time."""

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise UserError(f"the learning rate {self.lr} is negative", "--lr")


@dataclass(frozen=True)
class Config:
    """Do something with a model.

    A second paragraph that
    goes over two lines [and has brackets].
    """

    model: Path
    """Folder of the model."""
    data: str = "builtin"
    """Text."""
    _: KW_ONLY
    out: Path = Path("runs/x")
    """Folder of the run."""
    tokens: int | None = 300
    """Budget."""
    contexts: tuple[int, ...] = (512, 1024)
    """Context lengths."""
    stop: tuple[str, ...] = ()
    """Stop strings."""
    resume: bool = True
    """Go on."""
    seed: int | Literal["random"] = 0
    """Seed."""
    temperature: float | None = None
    """Temperature."""
    train: Annotated[Optimizer, Parameter(name="*")] = field(default_factory=Optimizer)
    """Optimizer."""
    config: Path | None = None
    """YAML file."""


def parse(*argv: str) -> Config:
    config = parse_flags(Config, argv, program="yeoul try")
    assert config is not None
    return config


def yaml_file(folder: Path, text: str) -> str:
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    return str(folder / "c.yaml")


def test_positionals_flags_and_defaults() -> None:
    assert parse("m") == Config(Path("m"))
    got = parse("m", "d", "--no-resume", "--out", "a b", "--contexts", "1e3", "2_000", "--stop", "가", "--lr=0.5")
    assert got == Config(
        Path("m"),
        "d",
        resume=False,
        out=Path("a b"),
        contexts=(1000, 2000),
        stop=("가",),
        train=Optimizer(lr=0.5),
    )
    assert parse("--model", "m", "--data=--odd", "--seed", "random", "--tokens=1e6").tokens == 1_000_000
    assert parse("m", "--contexts", "1", "--contexts", "2").contexts == (1, 2)
    assert parse("m", "--betas", "0.1", "0.2").train.betas == (0.1, 0.2)
    assert parse("m", "--tokens", "none").tokens is None
    assert parse("m", "--", "--data").data == "--data"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), ["MODEL is missing", "yeoul try --help"]),
        (("m", "--lerning-rate", "1"), ['unknown flag "--lerning-rate"', "--help"]),
        (("--contex", "1"), ['unknown flag "--contex"', 'did you mean "--contexts"']),
        (("m", "--train.lr", "1"), ['unknown flag "--train.lr"']),
        (("m", "--lr", "abc"), ["--lr must be a number", '"abc"']),
        (("m", "--lr", "-1"), ["negative", "--lr"]),
        (("m", "--tokens", "1.5"), ['"1.5" is not a whole number', "--tokens"]),
        (("m", "--tokens=ten"), ['"ten" is not a whole number', "--tokens"]),
        (("m", "--contexts", "1", "x"), ['"x" is not a whole number', "--contexts"]),
        (("m", "--schedule", "cosin"), ["cosin", "--schedule", "cosine", "wsd"]),
        (("m", "--resume=maybe"), ["--resume must be true or false"]),
        (("m", "--out"), ["--out needs a value"]),
        (("m", "--betas", "1"), ["--betas needs 2 values"]),
        (("m", "d", "e"), ['unexpected argument "e"']),
        (("m", "--lr", "1", "--lr", "2"), ["--lr", "multiple times"]),
        (("m", "-x"), ["-x"]),
        (("m", "--config", "/nowhere/c.yaml"), ["no such configuration file", "/nowhere/c.yaml"]),
    ],
)
def test_mistakes_on_the_command_line(argv: tuple[str, ...], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(*argv)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flag_beats_file_beats_default(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "model: m\nlr: 1e-4\ntokens: 1e3\ncontexts: [1, 2]\nresume: false\nbetas: [0.1, 0.2]\n")
    got = parse("--config", path, "--lr", "0.5", "--contexts", "7", "--resume")
    assert got == Config(
        Path("m"), tokens=1000, contexts=(7,), train=Optimizer(lr=0.5, betas=(0.1, 0.2)), config=Path(path)
    )
    assert parse(f"--config={path}", "other").model == Path("other")


def test_keys_may_be_kebab_or_snake(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Sizes:
        """Sizes."""

        batch_size: int = 1
        """Batch."""

    for key in ("batch_size", "batch-size"):
        assert load_config(Sizes, yaml_file(tmp_path, f"{key}: 5\n")).batch_size == 5
    with pytest.raises(UserError, match="twice"):
        load_config(Sizes, yaml_file(tmp_path, "batch_size: 5\nbatch-size: 5\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tokenz: 5\n", ['unknown key "tokenz"', 'did you mean "tokens"']),
        ("zzzzzz: 5\n", ['unknown key "zzzzzz"', "known keys are", "temperature"]),
        ("config: x.yaml\n", ['unknown key "config"']),
        ("train:\n  lr: 3\n", ['key "train" contains nested keys', 'write "lr"']),
        ("lr:\n  a: 3\n", ['key "lr" contains nested keys']),
        ("lr: abc\n", ["lr", "must be a number", "abc"]),
        ("tokens: 1.5\n", ["1.5", "not a whole number", "key tokens"]),
        ("contexts: [1, x]\n", ['"x" is not a whole number']),
        ("schedule: cosin\n", ["cosin", 'key "schedule"', "wsd"]),
        ("lr: [1, 2]\n", ["lr"]),
        ("resume: perhaps\n", ["resume", "true or false"]),
        ("a: [1\nb: 2\n", ["not valid YAML", "line 2"]),
        ("lr: 1\n\tx: 2\n", ["not valid YAML", "line 2"]),
        ("- a\n- b\n", ["not a mapping"]),
        ("out: !!python/object:os.system {}\n", ["not valid YAML"]),
        ("out: 2026-13-45\n", ["impossible"]),
        ("out: \x07\n", ["not valid YAML"]),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, words: list[str]) -> None:
    path = yaml_file(tmp_path, text)
    with pytest.raises(UserError) as caught:
        parse("m", "--config", path)
    for word in [*words, "c.yaml"]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "euc-kr.yaml").write_bytes("model: m\ndata: 여울\n".encode("euc-kr"))
    with pytest.raises(UserError, match="not UTF-8.*line 2"):
        parse("--config", str(tmp_path / "euc-kr.yaml"))
    with pytest.raises(UserError, match="cannot be read"):
        parse("--config", str(tmp_path))
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert parse("m", "--config", str(tmp_path / "empty.yaml")).model == Path("m")
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfmodel: m\n")
    assert parse("--config", str(tmp_path / "bom.yaml")).model == Path("m")


def test_saved_config_is_plain_and_comes_back(tmp_path: Path) -> None:
    config = Config(
        Path("m"), "여울", tokens=None, contexts=(), stop=("가", "\n"), resume=False, config=Path("c.yaml"),
        train=Optimizer(lr=3e-4, schedule="wsd"),
    )  # fmt: skip
    path = tmp_path / "deep" / "config.yaml"
    save_config(config, path)
    text = path.read_text(encoding="utf-8")
    assert "여울" in text and "!!" not in text
    assert yaml.safe_load(text)["out"] == "runs/x"
    assert [p.name for p in path.parent.iterdir()] == ["config.yaml"]
    loaded = load_config(Config, path)
    assert flat_values(loaded) == flat_values(config)
    assert loaded.config is None
    assert flat_values(parse("--config", str(path))) == flat_values(config)


plain_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)


@settings(deadline=None, max_examples=40)
@given(
    data=plain_text,
    tokens=st.none() | st.integers(-(10**18), 10**18),
    contexts=st.lists(st.integers(0, 10**6), max_size=3).map(tuple),
    stop=st.lists(plain_text, max_size=3).map(tuple),
    lr=st.floats(0, 1e6),
    temperature=st.none() | st.floats(allow_nan=False),
)
def test_any_values_survive_the_file(
    tmp_path_factory: Any,
    data: str,
    tokens: int | None,
    contexts: Any,
    stop: Any,
    lr: float,
    temperature: Any,
) -> None:
    config = Config(
        Path("m"),
        data,
        tokens=tokens,
        contexts=contexts,
        stop=stop,
        temperature=temperature,
        train=Optimizer(lr=lr),
    )
    path = tmp_path_factory.mktemp("yaml") / "c.yaml"
    save_config(config, path)
    assert load_config(Config, path) == config


def test_missing_required_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MODEL is missing .*c\.yaml"):
        load_config(Config, yaml_file(tmp_path, "data: x\n"))


def test_two_fields_of_one_name_are_a_bug() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Clash:
        """Two learning rates."""

        lr: float = 0.0
        """One."""
        train: Annotated[Optimizer, Parameter(name="*")] = field(default_factory=Optimizer)
        """Two."""

    with pytest.raises(TypeError, match="lr"):
        flat_values(Clash())


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_flags(Config, ["--help"], program="yeoul try") is None
    text = capsys.readouterr().out
    assert "Usage: yeoul try MODEL [DATA] [--flags]" in text
    assert "A second paragraph that goes over two lines [and has brackets]." in " ".join(text.split())
    for words in (
        "--lr",
        "Learning rate.",
        "[default: runs/x]",
        "cosine, wsd",
        "--no-resume",
        "--contexts INT...",
    ):
        assert words in text
    # Also beside other arguments, even wrong ones.
    assert parse_flags(Config, ["m", "--lr", "--help"], program="yeoul try") is None


@dataclass(frozen=True, kw_only=True)
class Nested:
    file: Path = Path("x")
    """File."""


@dataclass(frozen=True)
class Places:
    """Paths of every kind."""

    model: Place
    """Model."""
    _: KW_ONLY
    out: Path | None = None
    """Result."""
    models: tuple[Place, ...] = ()
    """Several."""
    many: tuple[Path, ...] = ()
    """Several."""
    words: str = ""
    """No path."""
    config: Path | None = None
    """YAML file."""
    nested: Annotated[Nested, Parameter(name="*")] = field(default_factory=Nested)
    """Inside."""


def test_home_is_found_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.yaml").write_text("out: ~/o\nmodels: [~/a, org/b]\nmany: ['~/c', d]\nwords: ~/e\nfile: ~/f\n")
    config = parse_flags(Places, ["~/m, x~,~/n", "--config=~/r.yaml"], program="yeoul test")
    assert config is not None and config.model == f"{tmp_path}/m,x~,{tmp_path}/n"
    assert config.out == tmp_path / "o" and config.models == (f"{tmp_path}/a", "org/b")
    assert config.many == (tmp_path / "c", Path("d")) and config.words == "~/e" and config.nested.file == tmp_path / "f"
    config = parse_flags(Places, ["a, b", "--out=~/p", "--file", "~"], program="yeoul test")
    assert config is not None and config.model == "a, b" and config.out == tmp_path / "p"
    assert config.nested.file == tmp_path


def _fields_of_all_verbs() -> Iterator[tuple[str, Any, str]]:
    """(verb and field, its hint, its help) of every flag there is."""
    from yeoul.cli import VERBS

    for verb in VERBS:
        try:
            module = importlib.import_module(f"yeoul.commands.{verb}")
        except ModuleNotFoundError:
            continue  # planned
        classes = [config for config, _ in getattr(module, "SUBCOMMANDS", {}).values()] or [module.Config]
        while classes:
            cls = classes.pop()
            for name, hint in get_type_hints(cls, include_extras=True).items():
                inner = [part for part in (hint, *get_args(hint)) if is_dataclass(part)]
                classes += inner  # type: ignore[arg-type]
                lines = inspect.getsource(cls).split(f"\n    {name}: ")
                yield f"{verb}: {name}", hint, lines[-1].split('"""')[1] if len(lines) > 1 and not inner else ""


def test_flags_that_are_paths_say_so() -> None:
    found = [
        (name, hint) for name, hint, text in _fields_of_all_verbs() if re.search(r"[Ff]older|\bfile|\bhub\b", text)
    ]
    texts = {name for name, hint in found if hint in (str, str | None, tuple[str, ...])}
    texts = {name for name in texts if not name.endswith(": encoding")}  # of files, and no path
    assert len(found) > 40 and not texts, "a path is a Path or a Place"


@dataclass(frozen=True)
class Renamed:
    """A group with a flag that had another name."""

    RENAMED: ClassVar[dict[str, str]] = {"judge_tokens": "compare_tokens"}

    compare_tokens: int = 5
    """Tokens."""


@dataclass(frozen=True)
class Around:
    """What has the group."""

    group: Annotated[Renamed, Parameter(name="*")] = field(default_factory=Renamed)
    """The group."""
    config: Path | None = None
    """A file."""


def test_a_flag_under_its_earlier_name_still_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--judge-tokens", "7"], ["--judge-tokens=7"], ["--judge_tokens", "7"]):
        made = parse_flags(Around, argv, program="yeoul x")
        assert made is not None and made.group.compare_tokens == 7
        assert "called --compare-tokens now" in capsys.readouterr().err
    (tmp_path / "old.yaml").write_text("judge-tokens: 9\n")
    assert load_config(Around, tmp_path / "old.yaml").group.compare_tokens == 9
    assert capsys.readouterr().err == "", "a run may have written the file"
