"""llama.cpp in a process of its own, for benchmarks: an interpreter with xllamacpp runs a script that answers lines."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any


class LlamaCpp:
    """A script that prints "ready" once it has read a model, and then a line of JSON for each that it is given.

    Args:
        python: interpreter with xllamacpp.
        script: Python code; its arguments are the model and `arguments`.
        model: a GGUF file.
        arguments: numbers.

    Raises:
        SystemExit: llama.cpp does not read the model.
    """

    def __init__(self, python: Path, script: str, model: Path, *arguments: int) -> None:
        self.process = subprocess.Popen(
            [str(python), "-c", script, str(model), *map(str, arguments)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout is not None
        while (line := self.process.stdout.readline()) and line.strip() != "ready":
            pass
        if not line:
            raise SystemExit("llama.cpp does not read the model")

    def ask(self, question: Any) -> Any:
        """What the script answers.

        Raises:
            SystemExit: it has ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        while not (line := self.process.stdout.readline()).startswith(("{", "[")):
            if not line:
                raise SystemExit("llama.cpp has ended")
        return json.loads(line)

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()
