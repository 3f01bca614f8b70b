"""The built-in corpus: a small Korean world, written for Yeoul and generated from a seed.

Everything is made from the vocabulary and the templates of this package with `random.Random.random` alone, so that a
seed gives the same bytes with every version of Python.
"""

from yeoul.data.builtin.generate import (
    CORPUS_VERSION,
    generate_dialogs,
    generate_documents,
    generate_recall,
    generate_reviews,
    generate_stories,
)

__all__ = [
    "CORPUS_VERSION",
    "generate_dialogs",
    "generate_documents",
    "generate_recall",
    "generate_reviews",
    "generate_stories",
]
