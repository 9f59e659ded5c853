"""Which estimated event is which reference event.

Two events may be matched if their onsets lie within a collar and, where offsets count, their
offsets within the larger of the collar and a share of the reference event's length. Every event is
matched at most once, and as many as possible are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from downstream.metrics.event_table import EventTable

Pairs = tuple[np.ndarray, np.ndarray]


def candidates(
    reference: EventTable,
    estimated: EventTable,
    collar_s: float,
    offset_fraction: float | None,
    *,
    same_label: bool = True,
) -> Pairs:
    """Pairs of rows (reference, estimated) in one file that may be matched.

    Sorted by reference, then estimated row. Comparisons are sed_eval's, in float64: a difference
    equal to the collar is inside, but 0.3 - 0.1 is not within 0.2. `same_label=False` pairs events
    of different classes too.
    """
    if not len(reference) or not len(estimated):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    groups = [table.file for table in (reference, estimated)]
    if same_label:
        n_labels = 1 + max(reference.label.max(), estimated.label.max())
        groups = [table.file * n_labels + table.label for table in (reference, estimated)]
    ref, est = _near(groups[0], reference.onset_s, groups[1], estimated.onset_s, collar_s)
    hit = np.abs(reference.onset_s[ref] - estimated.onset_s[est]) <= collar_s
    if offset_fraction is not None:
        length = reference.offset_s[ref] - reference.onset_s[ref]
        tolerance = np.maximum(collar_s, offset_fraction * length)
        hit &= np.abs(reference.offset_s[ref] - estimated.offset_s[est]) <= tolerance
    ref, est = ref[hit], est[hit]
    order = np.lexsort((est, ref))
    return ref[order], est[order]


def _near(
    groups_a: np.ndarray, a: np.ndarray, groups_b: np.ndarray, b: np.ndarray, distance: float
) -> Pairs:
    """All pairs of one group within a distance, and perhaps some a rounding error beyond it."""
    span = max(a.max(), b.max()) + 2 * distance + 1  # groups don't reach into each other
    key_a, key_b = groups_a * span + a, groups_b * span + b
    slack = 8 * np.spacing(max(key_a.max(), key_b.max()) + distance)
    order = np.argsort(key_b, kind="stable")
    first = np.searchsorted(key_b[order], key_a - distance - slack, side="left")
    end = np.searchsorted(key_b[order], key_a + distance + slack, side="right")
    row, place = in_ranges(first, end)
    return row, order[place]


def in_ranges(first: np.ndarray, end: np.ndarray) -> Pairs:
    """(row, number) for every number from `first[row]` up to `end[row]`, end excluded."""
    count = np.maximum(end - first, 0)
    before = np.cumsum(count) - count
    row = np.repeat(np.arange(len(count)), count)
    return row, np.arange(len(row)) - (before - first)[row]


def matched_references(pairs: Pairs, n_reference: int, n_estimated: int) -> np.ndarray:
    """Reference rows in a largest matching; how many there are of a class does not depend on it."""
    ref, est = pairs
    if not len(ref):
        return ref
    graph = csr_array((np.ones(len(ref), bool), (ref, est)), shape=(n_reference, n_estimated))
    return np.flatnonzero(maximum_bipartite_matching(graph, perm_type="column") >= 0)


def ordered_matching(pairs: Pairs) -> dict[int, int]:
    """Reference row -> estimated row: the largest matching that sed_eval ends with, among several.

    Which events stay unmatched, and so what counts as a substitution, depends on the order in
    which the method of Hopcroft and Karp (1973) tries them: estimated events as they first occur
    in `pairs`, each taking its first free reference event; then shortest augmenting paths, a
    round of disjoint ones at a time, until there are none.
    """
    options: dict[int, list[int]] = {}
    for ref, est in zip(*(column.tolist() for column in pairs), strict=True):
        options.setdefault(est, []).append(ref)
    partner: dict[int, int] = {}
    for est, refs in options.items():
        free = next((ref for ref in refs if ref not in partner), None)
        if free is not None:
            partner[free] = est
    while _augment(options, partner):
        pass
    return partner


def _augment(options: dict[int, list[int]], partner: dict[int, int]) -> bool:
    """One round of Hopcroft and Karp's method: whether there was any path."""
    taken = set(partner.values())
    layer = [est for est in options if est not in taken]
    came_through: dict[int, int | None] = dict.fromkeys(layer)
    reached_from: dict[int, list[int]] = {}
    ends: list[int] = []
    while layer and not ends:
        found: dict[int, list[int]] = {}
        for est in layer:
            for ref in options[est]:
                if ref not in reached_from:
                    found.setdefault(ref, []).append(est)
        reached_from.update(found)
        ends = [ref for ref in found if ref not in partner]
        layer = [partner[ref] for ref in found if ref in partner]
        came_through.update((partner[ref], ref) for ref in found if ref in partner)
    for end in ends:
        partner.update(_path(end, reached_from, came_through))
    return bool(ends)


def _path(
    end: int, reached_from: dict[int, list[int]], came_through: dict[int, int | None]
) -> list[tuple[int, int]]:
    """(reference, estimated) pairs of a path back from a free reference event, or none.

    What it visits is taken out of both dicts: the paths of a round have no event in common.
    """
    open_refs: list[tuple[int, Iterator[int]]] = [(end, iter(reached_from.pop(end, ())))]
    path: list[tuple[int, int]] = []
    while open_refs:
        ref, ests = open_refs[-1]
        est = next((est for est in ests if est in came_through), None)
        if est is None:
            open_refs.pop()
            path = path[:-1]
            continue
        before = came_through.pop(est)
        if before is None:
            return [*path, (ref, est)]
        path.append((ref, est))
        open_refs.append((before, iter(reached_from.pop(before))))
    return []
