"""Seven billion parameters by shape: decoding as in `decode`, where weights and keys fit into memory."""

from __future__ import annotations

from benchmarks.gpu.decode import finish, kinds, ours
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting


def run(bench: Setting, book: Report) -> None:
    """Softmax attention, and the hybrid that `linearize` makes by default."""
    contexts, batches = ((64,), (1, 2)) if bench.tiny else ((2048, 32_768, 131_072), (1, 8))
    shape = bench.shape("7b", max_position_embeddings=max(contexts))
    for kind in ("softmax", "hybrid"):
        ours(bench, book, "large", "7b", kind, kinds(shape)[kind], batches, contexts)
    finish(book, "large")
