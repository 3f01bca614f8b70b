"""Values kept for beginnings of texts, found by the longest common beginning, evicted by bytes. Without torch.

A radix tree over token ids. What is evicted first are values that only stand on the way to others (`minor`), and of
equals the one that was used longest ago.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")
Ids = np.ndarray
"""(N,) int64."""


class _Node(Generic[T]):
    """A place in the tree: `edge` are the ids from its parent to it."""

    __slots__ = ("bytes", "children", "edge", "length", "minor", "parent", "value")

    def __init__(self, edge: Ids, parent: _Node[T] | None) -> None:
        self.edge, self.parent = edge, parent
        self.length: int = len(edge) + (parent.length if parent else 0)
        self.children: dict[int, _Node[T]] = {}
        self.value: T | None = None
        self.bytes, self.minor = 0, False


class Prefixes(Generic[T]):
    """A store of values by texts.

    Args:
        most_bytes: that the values may have together.
        cuts: a value can be cut to any shorter beginning of its text, as keys and values of softmax attention can. Then
            the longest text is all that is kept of those that begin alike.

    Attributes:
        bytes: of all values.
    """

    def __init__(self, most_bytes: int, *, cuts: bool) -> None:
        self.most_bytes, self.cuts, self.bytes = most_bytes, cuts, 0
        self._roots: dict[Hashable, _Node[T]] = {}
        self._minor: OrderedDict[_Node[T], None] = OrderedDict()  # the one used longest ago first
        self._major: OrderedDict[_Node[T], None] = OrderedDict()

    def __len__(self) -> int:
        """How many values there are."""
        return len(self._minor) + len(self._major)

    def find(self, key: Hashable, ids: Ids) -> tuple[int, T] | None:
        """How many leading ids a value is known for, at most, and the value: of just these, or with `cuts` of more.

        Args:
            key: texts of different keys have nothing in common.
            ids: of the text.
        """
        node, matched = self._walk(key, ids)
        if node is None:
            return None
        if self.cuts:
            if not matched:
                return None
            while node.value is None:  # at every end there is one
                node = next(iter(node.children.values()))
        else:
            if node.length > matched:  # within its edge
                node = node.parent
            while node is not None and node.value is None:
                node = node.parent
            if node is None:
                return None
            matched = node.length
        self._used(node)
        assert node.value is not None
        return matched, node.value

    def put(self, key: Hashable, ids: Ids, value: T, nbytes: int, *, minor: bool = False) -> bool:
        """Keeps a value for a text; whether it did.

        Args:
            key: as in `find`.
            ids: of the text.
            value: for it; one that is there already is replaced.
            nbytes: of the value.
            minor: evicted before others, until it is found.
        """
        if nbytes > self.most_bytes or not len(ids):
            return False
        node, matched = self._walk(key, ids)
        if self.cuts and node is not None and matched == len(ids):
            return False  # a text that goes on has it
        node = self._place(key, ids)
        if node.value is not None:
            del self._order(node)[node]
            self.bytes -= node.bytes
            minor = minor and node.minor
        node.value, node.bytes = value, nbytes
        self.bytes += nbytes
        node.minor = minor
        self._order(node)[node] = None
        self._behind(node)
        while self.bytes > self.most_bytes:
            self._drop(next(iter(self._minor or self._major)))
        return node.value is not None

    def clear(self) -> None:
        """Forgets all."""
        self._roots.clear()
        self._minor.clear()
        self._major.clear()
        self.bytes = 0

    def _order(self, node: _Node[T]) -> OrderedDict[_Node[T], None]:
        return self._minor if node.minor else self._major

    def _used(self, node: _Node[T]) -> None:
        """Of use: no longer minor, and the last to go."""
        del self._order(node)[node]
        node.minor = False
        self._major[node] = None

    def _behind(self, node: _Node[T]) -> None:
        """What a new value makes of those before it: with `cuts` needless; else minor, unless texts part there."""
        above = node.parent
        while above is not None:
            before = above.parent
            if above.value is not None and self.cuts:
                self._drop(above)
            elif above.value is not None and not above.minor and len(above.children) < 2:
                del self._major[above]
                above.minor = True
                self._minor[above] = None
            above = before

    def _walk(self, key: Hashable, ids: Ids) -> tuple[_Node[T] | None, int]:
        """The last node that the ids lead to or towards, and how many of them it shares."""
        node, matched = self._roots.get(key), 0
        while node is not None and matched < len(ids):
            child = node.children.get(int(ids[matched]))
            if child is None:
                break
            common = _common(child.edge, ids[matched:])
            matched += common
            node = child
            if common < len(child.edge):
                break
        return node, matched

    def _place(self, key: Hashable, ids: Ids) -> _Node[T]:
        """The node of a text, made where there is none."""
        node, matched = self._walk(key, ids)
        if node is None:
            node = self._roots[key] = _Node(ids[:0], None)
        if node.length > matched:  # the text leaves its edge, or ends on it
            parent = node.parent
            assert parent is not None
            upper: _Node[T] = _Node(node.edge[: matched - parent.length].copy(), parent)
            parent.children[int(upper.edge[0])] = upper
            node.edge, node.parent = node.edge[len(upper.edge) :].copy(), upper
            upper.children[int(node.edge[0])] = node
            node = upper
        if matched < len(ids):
            node.children[int(ids[matched])] = node = _Node(ids[matched:].copy(), node)
        return node

    def _drop(self, node: _Node[T]) -> None:
        """Forgets a value, and nodes that lead to none."""
        del self._order(node)[node]
        self.bytes -= node.bytes
        node.value = None
        while node.parent is not None and node.value is None and not node.children:
            del node.parent.children[int(node.edge[0])]
            node = node.parent
        if node.parent is not None and node.value is None and len(node.children) == 1:
            (child,) = node.children.values()
            child.edge, child.parent = np.concatenate((node.edge, child.edge)), node.parent
            node.parent.children[int(child.edge[0])] = child
        if node.parent is None and not node.children:
            self._roots = {key: root for key, root in self._roots.items() if root is not node}


def _common(a: Ids, b: Ids) -> int:
    """How many ids both begin with."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size
