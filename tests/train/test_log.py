import io

from yeoul.train.log import MetricsLog, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_truncate_forgets_what_lies_past_a_step(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.append({"kind": "train", "step": step})
    log.close()
    damage = "[" * 10**5, '{"step": ' + "9" * 6000 + "}", '{"kind"'
    log.path.write_text(log.path.read_text() + "\n".join(damage))
    assert [line["step"] for line in log.truncate(2)] == [1, 2]
    log.append({"kind": "train", "step": 3})
    log.close()
    assert [line["step"] for line in log.read()] == [1, 2, 3]


def test_terminal_rewrites_one_line_and_a_file_gets_lines():
    for stream, lines in ((Terminal(), 1), (io.StringIO(), 2)):
        progress = Progress("pretrain", 10, stream)
        for step in (1, 2):
            progress.show(step, 2.5, 1e-3, 1234.5, 61, 2**30)
        progress.end()
        text = stream.getvalue()
        assert text.count("\n") == lines and "2.5000" in text and "1 min 1 s left" in text
