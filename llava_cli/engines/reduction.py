"""Fewer picture tokens, without training: those most unlike each other are read.

`chosen` is the greedy k-centre selection of ToDRE (arXiv 2505.18757), which the engine uses.
`merged` is bipartite soft matching after ToMe (Bolya et al., arXiv 2210.09461), done on projected
features instead of between a tower's layers: tokens are dealt to two sides in turn, every token of
the first side finds its most similar one of the second, and the most similar pairs become their
mean, weighted by how many tokens each stands for; it costs more accuracy (docs/performance.md) and
is here to be compared with.

Legend: N tokens, K tokens that are left, D width of a feature.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]


def merged(rows: Rows, count: int) -> Rows:
    """(N, D) -> (K, D), in the order of the picture."""
    rows = np.asarray(rows, np.float32)
    sizes = np.ones(len(rows), np.float32)
    while len(rows) > count:
        rows, sizes = _merge_once(rows, sizes, len(rows) - count)
    return np.ascontiguousarray(rows)


def _merge_once(rows: Rows, sizes: Rows, wanted: int) -> tuple[Rows, Rows]:
    """Merge up to half of the tokens; `wanted` are too many."""
    first, second = np.arange(0, len(rows), 2), np.arange(1, len(rows), 2)
    if len(second) == 0:
        return rows, sizes
    units = _units(rows)
    likeness = units[first] @ units[second].T
    partner, best = likeness.argmax(axis=1), likeness.max(axis=1)
    going = np.argsort(-best, kind="stable")[: min(wanted, len(first))]
    sums = rows * sizes[:, None]
    total = sizes.copy()
    np.add.at(sums, second[partner[going]], sums[first[going]])
    np.add.at(total, second[partner[going]], sizes[first[going]])
    stays = np.ones(len(rows), bool)
    stays[first[going]] = False
    return (sums[stays] / total[stays][:, None]).astype(np.float32), total[stays]


def chosen(rows: Rows, count: int) -> Rows:
    """(N, D) -> (K, D): each next token is the one least like those that were chosen."""
    rows = np.asarray(rows, np.float32)
    if len(rows) <= count:
        return rows
    units = _units(rows)
    taken = [int(np.argmin(units @ units.mean(axis=0)))]
    nearest = units @ units[taken[0]]
    while len(taken) < count:
        taken.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, units @ units[taken[-1]])
    return np.ascontiguousarray(rows[sorted(taken)])


def _units(rows: Rows) -> Rows:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), np.float32)
