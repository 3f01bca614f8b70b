import io

import pytest

from yeoul import cli, lines
from yeoul.commands.terminal import note
from yeoul.train.log import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[60, 80])
def width(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def test_a_terminal_gets_lines_that_it_need_not_cut(width):
    sentence = "one two-three four " * 20 + "/a/very/long/path" * 10
    found = lines.folded(sentence, Terminal())
    assert " ".join(found.split()) == sentence.strip()
    assert all(len(line) <= width for line in found.split("\n") if "/a/" not in line)
    assert lines.folded(sentence, io.StringIO()) == sentence  # a pipe gets one line


def test_parts_that_do_not_fit_are_left_out_whole():
    assert lines.fitting(["step 1", "loss 2.5", "lr 1e-3"], 18) == "step 1 · loss 2.5"
    assert lines.fitting(["a long name"], 6) == "a long"


def test_what_is_said_on_a_terminal_ends_between_words(width, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    note("word " * 40)
    assert cli._complain("word " * 40, 2) == 2
    Progress("pretrain", 10, stream).say("word " * 40)
    said = stream.getvalue().replace("\033[2m", "").replace("\033[0m", "")
    assert said.count("word") == 120 and max(map(len, said.split("\n"))) <= width
    progress = Progress("pretrain", 10_000, stream)
    progress.show(1, 2.5, 1e-3, 1234.5, 61, 2**30)
    shown = stream.getvalue().rpartition("\x1b[K")[2]
    assert len(shown) < width and "1 min 1 s left" in shown
    whole = "pretrain 1/10,000 (0 %) · loss 2.5000 · 1 min 1 s left · 1,234 tokens/s · 1.0 GiB · lr 1.00e-03"
    assert set(shown.split(" · ")) <= set(whole.split(" · "))


@pytest.mark.parametrize("verb", [None, *cli.VERBS, "tokenizer train", "tokenizer inspect"])
def test_help_breaks_no_word(verb, width, monkeypatch, capsys):
    def helped(columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert cli.main([*(verb or "").split(), "--help"]) == 0
        return capsys.readouterr().out

    words = lambda text: {word.strip("│╭╮╰╯─") for word in text.split()}  # noqa: E731
    narrow = helped(width)
    assert words(narrow) <= words(helped(400)) | {""}
    assert max(map(len, narrow.splitlines())) <= width
