"""Everything worth measuring on one NVIDIA GPU, in stages that each end within minutes and write as they go.

    make gpu                                    all stages, twelve minutes
    PYTHONPATH=src python -m benchmarks.gpu --stages kernels decode --budget 8 --out gpu.json

Stages: `tests` runs the tests marked gpu; `kernels` times ours, FlashAttention and flash-linear-attention (where it can
be imported) on the latter's own shapes; `decode` replays one CUDA graph for all contexts, beside softmax attention and
transformers; `train` pretrains 159 million parameters for some minutes; `linearize` converts them with a sixteenth of
the tokens; `large` decodes 7 billion parameters by shape. The JSON is rewritten after every row, so that a run that is
stopped leaves what it has; what does not fit or cannot run is a row with the reason. Shares of the peak are of a matrix
product and a copy measured in the same run. `--tiny` runs every line on a CPU, Triton in its interpreter.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

STAGES = {"tests": 2.5, "kernels": 3.0, "decode": 4.0, "train": 5.0, "linearize": 5.0, "large": 3.0}
"""In this order, and how many minutes each may take."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--budget", type=float, default=12.0, help="minutes of all stages together")
    parser.add_argument("--train-minutes", type=float, default=3.0, help="of the pretraining in `train`")
    parser.add_argument("--tiny", action="store_true", help="every line at toy sizes, on a CPU too")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file for the JSON")
    parser.add_argument("--append", action="store_true", help="keep the rows that are in the file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.tiny:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported
    import torch
    from benchmarks.gpu import report, setting

    if not torch.cuda.is_available() and not options.tiny:
        print("This benchmark needs a CUDA GPU, and torch sees none; --tiny runs it on a CPU.", file=sys.stderr)
        return 2
    end = time.monotonic() + 60 * options.budget
    bench = setting.Setting.of(options.tiny, end=end, train_minutes=options.train_minutes)
    book = report.Report(options.out, bench.head(), append=options.append)
    print(book.title(), flush=True)
    stages = [name for name in STAGES if name in options.stages]
    for number, name in enumerate(stages):
        bench.deadline = min(end, time.monotonic() + 60 * STAGES[name])
        try:
            bench.run(name, book)
        except report.DeviceLost:  # nothing works in this process any more, but in another it may
            left = (end - time.monotonic()) / 60
            rest = stages[number + 1 :]
            if not rest or left <= 0:
                return 1
            again = [sys.executable, "-m", "benchmarks.gpu", "--stages", *rest, "--budget", f"{left:.2f}", "--append"]
            again += ["--out", str(options.out), "--train-minutes", str(options.train_minutes)]
            return subprocess.call(again + ["--tiny"] * options.tiny)
    return 0


if __name__ == "__main__":
    sys.exit(main())
