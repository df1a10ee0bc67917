"""Scikit-learn's tree ensembles as flat arrays, walked by Numba. No scikit-learn here: this is what scores.

Trees are laid out in preorder: the left child follows its parent. Features are compared as float32, as scikit-learn's
own trees do, so a threshold may be rounded down to float32 without moving a single row to the other side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from raybroker.learning.compiled import Floats, Ints, exponentiate


class Tree(NamedTuple):
    """One tree with nodes in any order, node 0 its root; `left` is -1 in a leaf, `values` holds a row per node."""

    left: NDArray[Any]
    right: NDArray[Any]
    feature: NDArray[Any]
    threshold: NDArray[Any]
    missing_left: NDArray[Any]
    values: Floats  # [nodes, width]
    target: int = 0  # the class to which the first value of a leaf adds


@dataclass(frozen=True)
class Trees:
    """The sum of the trees' leaves over a baseline; of logits, if `logits`, the softmax."""

    root: Ints  # [trees]
    target: Ints  # [trees]
    feature: NDArray[np.int16]  # [nodes], -1 in a leaf
    threshold: NDArray[np.float32]
    right: Ints  # the right child; in a leaf its row in `values`
    missing_left: NDArray[np.bool_]
    values: Floats  # [leaves, width]
    baseline: Floats  # [classes]; NaN for a class that logits do not know
    logits: bool

    def predict(self, scaled: Floats) -> Floats:
        nodes = (self.feature, self.threshold, self.right, self.missing_left)
        made: Floats = _sum(
            scaled.astype(np.float32), self.root, self.target, nodes, self.values, self.baseline
        )
        if self.logits:
            exponentiate(made)
        return made


@dataclass(frozen=True)
class Committee:
    """Several ensembles, each with its share of the say."""

    parts: tuple[Trees, ...]
    shares: tuple[float, ...]  # sum 1

    def predict(self, scaled: Floats) -> Floats:
        total = self.shares[0] * self.parts[0].predict(scaled)
        for part, share in zip(self.parts[1:], self.shares[1:], strict=True):
            total += share * part.predict(scaled)
        return total


def lay_out(trees: Sequence[Tree], baseline: Floats, logits: bool) -> Trees:
    """Trees as arrays. All trees of one ensemble have leaves of the same width."""
    orders = [_preorder(tree) for tree in trees]
    first = np.cumsum([0, *(len(order) for order in orders)])
    laid = [_laid(tree, order) for tree, order in zip(trees, orders, strict=True)]
    width = trees[0].values.shape[1] if trees else len(baseline)
    feature = np.concatenate([np.empty(0, np.int16), *(one.feature for one in laid)])
    leaf = feature < 0
    right = np.concatenate(
        [np.empty(0, np.int32), *(one.right + start for one, start in zip(laid, first, strict=False))]
    )
    return Trees(
        root=first[:-1].astype(np.int32),
        target=np.array([tree.target for tree in trees], np.int32),
        feature=feature.astype(np.int16),
        threshold=np.concatenate([np.empty(0, np.float32), *(one.threshold for one in laid)]),
        right=np.where(leaf, np.cumsum(leaf) - 1, right).astype(np.int32),
        missing_left=np.concatenate([np.empty(0, bool), *(one.missing_left for one in laid)]),
        values=np.concatenate([np.empty((0, width)), *(one.values[one.feature < 0] for one in laid)]),
        baseline=np.array(baseline, float),
        logits=logits,
    )


def _preorder(tree: Tree) -> NDArray[np.int64]:
    """The numbers of the nodes, each parent before its left child and that before the right one."""
    left, right = tree.left.tolist(), tree.right.tolist()
    found, waiting = [], [0]
    while waiting:
        node = waiting.pop()
        found.append(node)
        if left[node] >= 0:
            waiting += [right[node], left[node]]
    return np.array(found)


def _laid(tree: Tree, order: NDArray[np.int64]) -> Tree:
    """The tree in that order."""
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    leaf = tree.left[order] < 0
    return Tree(
        left=np.empty(0),
        right=np.where(leaf, 0, number[tree.right[order]]),
        feature=np.where(leaf, -1, tree.feature[order]).astype(np.int16),
        threshold=_rounded_down(np.where(leaf, 0.0, tree.threshold[order])),
        missing_left=tree.missing_left[order].astype(bool) & ~leaf,
        values=tree.values[order],
    )


def _rounded_down(values: Floats) -> NDArray[np.float32]:
    """The largest float32 that is not above: x <= value is the same for every float32 x."""
    near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-math.inf)), near)


@njit(cache=True)
def _sum(rows, root, target, nodes, values, baseline):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Tree after tree, so that a tree stays near the processor; a row's sum has the same order in any batch."""
    feature, threshold, right, missing_left = nodes
    made = np.empty((rows.shape[0], len(baseline)))
    made[:] = baseline
    width = values.shape[1]
    for tree in range(len(root)):
        for row in range(rows.shape[0]):
            node = root[tree]
            while feature[node] >= 0:
                value, other = rows[row, feature[node]], right[node]
                left = (value <= threshold[node]) | (math.isnan(value) & missing_left[node])
                node = node + 1 if left else other  # no branch to guess wrong: half the time
            for k in range(width):
                made[row, target[tree] + k] += values[right[node], k]
    return made
