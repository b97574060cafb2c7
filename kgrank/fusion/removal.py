"""Scores without some edges of the graph: what the model would say had they never been there.

Nothing is trained again; what an edge takes part in is worked out anew:

| what | without the edges |
|---|---|
| the user's history | without these events; ages, decay and the size of each channel follow |
| `linear`, `directed` | column i solved again over its neighbours, rows and side rows changed |
| `graph` | the features of both products without the entity, brought to length 1 again |
| `learned` ("light") | the vectors of a propagation without them, brought to length 1 again |

The change of a column is that between two closed forms over the same neighbours. For a local ridge
the one before is the column itself; an exact one spans all items, so there it is close to it. A
propagation follows as `kgrank.fusion.light_removal` says: degrees are those of the events left, as
the ridges' moments are. How rare an entity is and sizes (but for the history's own change) stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.sparse as sp
import torch

from kgrank.fusion.channels import Channel, DenseFeatures, ItemItem, SparseFeatures
from kgrank.fusion.evidence import Evidence, Steps
from kgrank.fusion.history import Histories, Spans
from kgrank.fusion.item_item import Moments, Ridge, side_columns
from kgrank.fusion.light_removal import LightParts
from kgrank.fusion.model import FusedModel, Head

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Removed:
    """Edges that are not there. Parallel edges, of whatever relation, count as one.

    Attributes:
        own: item numbers; the user's events on them.
        others: user number → item numbers; other users' events on them.
        facts: (item number, column of the features); what ties both.
    """

    own: frozenset[int] = frozenset()
    others: Mapping[int, frozenset[int]] = field(default_factory=dict)
    facts: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, eq=False)
class Rescorer:
    """Scores of one model as they would be without some edges.

    Attributes:
        model: what scores.
        evidence: what its channels were fitted on.
        ridges: item–item channel → its ridge and the steps of its rows (None for EASE).
        learned: what the vectors of channels with `DenseFeatures.lengths` are sums of.
    """

    model: FusedModel
    evidence: Evidence
    ridges: Mapping[str, tuple[Ridge, Steps | None]]
    learned: Mapping[str, LightParts]

    def score(
        self, histories: Histories, user: int, item: int, head: Head, without: Removed
    ) -> float:
        """The score of an item for a user without some edges.

        Args:
            histories: where the user's events are.
            user: user number.
            item: item number.
            head: which list the score is for.
            without: the edges.
        """
        if without.own:  # a user's events are a row of the fit too
            without = replace(without, others={**without.others, user: without.own})
        first, last = histories.starts[user], histories.starts[user + 1]
        kept = first + np.flatnonzero(~np.isin(histories.items[first:last], list(without.own)))
        own = replace(
            histories,
            starts=np.array([0, len(kept)]),
            items=histories.items[kept],
            kinds=histories.kinds[kept],
            times=histories.times[kept],
            values=None if histories.values is None else histories.values[kept],
        )
        span = Spans(own.starts[:1], own.starts[1:])
        folded = self.model.folded(own, span, head)
        parts = self.model.parts_of(folded, item, head)
        score = parts.score
        for number, channel in enumerate(self.model.channels):
            if parts.factors[number].any():
                values = self._values(channel, folded.items, item, without)
                if values is not None:
                    score += float(parts.factors[number] @ values - parts.parts[number].sum())
        return score

    def _values(
        self, channel: Channel, items: npt.NDArray[np.integer], item: int, without: Removed
    ) -> Doubles | None:
        """v(h, item) of each item h of the history, (n); None where no edge changes it."""
        form = channel.form
        if not without.others and not without.facts:
            return None
        if isinstance(form, ItemItem) and channel.name in self.ridges:
            return self._solved(channel.name, form, items, item, without)
        if isinstance(form, DenseFeatures) and channel.name in self.learned:
            return self._products(self.learned[channel.name], form, items, item, without)
        if isinstance(form, SparseFeatures) and channel.name == "graph" and without.facts:
            own = self._features(form.values, item, without)
            rows = {h: self._features(form.values, h, without) for h in set(items.tolist())}
            return np.array([float(rows[h] @ own) for h in items.tolist()])
        return None

    def _features(self, values: sp.csr_matrix, item: int, without: Removed) -> Doubles:
        row: Doubles = values[item].toarray()[0].astype(np.float64)
        gone = [column for of, column in without.facts if of == item]
        if gone:
            row[gone] = 0.0
            row /= max(float(np.linalg.norm(row)), 1e-12)
        return row

    def _products(
        self,
        parts: LightParts,
        form: DenseFeatures,
        items: npt.NDArray[np.integer],
        item: int,
        without: Removed,
    ) -> Doubles | None:
        """The products of the vectors as they are without the edges."""
        if form.lengths is None:
            return None
        events = ((user, of) for user, lost in without.others.items() for of in lost)
        each, places = np.unique(np.append(items, item), return_inverse=True)
        change = parts.change(each, events, without.facts)
        vectors = []
        for table, lengths in zip((form.of_history, form.values), form.lengths, strict=True):
            sums = table[torch.from_numpy(each).to(table.device)].cpu().numpy().astype(np.float64)
            sums = sums * lengths[each, None] + change
            vectors.append(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12))
        values: Doubles = vectors[0][places[:-1]] @ vectors[1][places[-1]]
        return values

    def _solved(
        self,
        name: str,
        form: ItemItem,
        items: npt.NDArray[np.integer],
        item: int,
        without: Removed,
    ) -> Doubles:
        """The column's values at the items, changed as its closed form changes."""
        column = form.weights[:, [item]].tocoo()
        near = np.sort(column.row)
        if (name, item) not in self._whole:
            self._whole[name, item] = self._column(name, near, item, Removed())
        after, before = self._column(name, near, item, without), self._whole[name, item]
        change = dict(zip(near.tolist(), (after - before).tolist(), strict=True))
        moved = np.array([change.get(h, 0.0) for h in items.tolist()])
        return np.asarray(form.of_events(items, item) + moved, np.float64)

    def _column(
        self, name: str, near: npt.NDArray[np.integer], item: int, without: Removed
    ) -> Doubles:
        """Column `item` of the ridge over its neighbours, (n_near) float64."""
        if not len(near):
            return np.empty(0)
        ridge, steps = self.ridges[name]
        moments = self._moments(name)
        gram = _taken(moments.gram, near, near)
        cross = _taken(moments.cross, near, np.array([item]))[:, 0]
        for sign, events in zip((-1.0, 1.0), self._before_and_after(without), strict=False):
            if steps is None:
                inputs = outputs = events.histories.binary()
            else:
                inputs, outputs = events.steps(steps)
            inputs, outputs = inputs[:, near], outputs[:, [item]]
            gram += sign * (inputs.T @ inputs).toarray()
            cross += sign * (inputs.T @ outputs).toarray()[:, 0]
        sides = ("entities", ridge.entities), ("words", ridge.words)
        for side, weight in sides:
            features = getattr(moments, side)
            if weight and features is not None:
                rows = features[near].toarray().astype(np.float64)
                own = features[[item]].toarray()[0].astype(np.float64)
                if side == "entities":
                    for of, place in self._side_places(without):
                        rows[near == of, place] = 0.0
                        if of == item:
                            own[place] = 0.0
                gram += weight * (rows @ rows.T)
                cross += weight * (rows @ own)
        gram[np.diag_indices(len(near))] += ridge.penalty + ridge.dropout * gram.diagonal()
        solved: Doubles = scipy.linalg.solve(gram, cross, assume_a="pos")
        return solved

    def _moments(self, name: str) -> Moments:
        if name not in self._made:
            steps = self.ridges[name][1]
            evidence = self.evidence
            made = evidence.linear_moments() if steps is None else evidence.directed_moments(steps)
            self._made[name] = made
        return self._made[name]

    @cached_property
    def _whole(self) -> dict[tuple[str, int], Doubles]:
        """Columns with nothing removed."""
        return {}

    @cached_property
    def _made(self) -> dict[str, Moments]:
        return {}

    def _side_places(self, without: Removed) -> list[tuple[int, int]]:
        """The facts by column of the side rows; what a large catalogue leaves out is not there."""
        columns = side_columns(self.evidence.features.entities)
        if isinstance(columns, slice):
            return list(without.facts)
        places = {int(column): place for place, column in enumerate(columns)}
        return [(of, places[column]) for of, column in without.facts if column in places]

    def _before_and_after(self, without: Removed) -> list[Evidence]:
        """The histories that lose events, with and without them; none where none does."""
        if not without.others:
            return []
        histories, users = self._histories, sorted(without.others)
        spans = histories.of_users(np.array(users))
        lengths = spans.last - spans.first
        events = np.concatenate(
            [np.arange(a, b) for a, b in zip(spans.first, spans.last, strict=True)]
        )
        of = np.repeat(np.arange(len(users)), lengths)
        items = histories.items[events]
        gone = np.zeros(len(events), bool)
        for place, user in enumerate(users):
            gone |= (of == place) & np.isin(items, list(without.others[user]))
        nothing = np.zeros(len(events))
        some = Histories.from_arrays(
            of,
            items,
            nothing.astype(np.int64),
            nothing,
            kind_names=("",),
            n_users=len(users),
            n_items=histories.n_items,
        )
        return [replace(self.evidence, histories=each) for each in (some, some.where(~gone))]

    @cached_property
    def _histories(self) -> Histories:
        return self.evidence.recent()


def _taken(
    matrix: npt.NDArray[np.float32] | sp.csc_matrix,
    rows: npt.NDArray[np.integer],
    columns: npt.NDArray[np.integer],
) -> Doubles:
    if isinstance(matrix, np.ndarray):
        return np.asarray(matrix[np.ix_(rows, columns)], np.float64)
    taken: Doubles = matrix[:, columns].tocsr()[rows].toarray().astype(np.float64)
    return taken
