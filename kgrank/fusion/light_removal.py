"""What the vectors of a "light" encoder change by when edges are gone, its trained weights held.

Before it is of length 1, an item's vector is a sum (`kgrank.kg.gnn`), x being y_0:

    Σ_t y_t      y_t = Σ_k w_tk ⊙ A_kᵀ p_t      p_t = Σ_k A_k y_t-1      A_k = D^-½ X_k D^-½

Without some edges it is that of the propagation run on what is left: the events are not in X_k,
the degrees of their users and items in D are those that are left, and a fact brings nothing to the
x of its item, nor what went on from there. What an encoder learned stays: its weights, an item's
own part, and how much of an item's vector each of the facts left brings.

Only users whose row changes, or who met an item whose vector has changed, are walked. A source and
a target change by the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from kgrank.fusion.history import Histories
from kgrank.kg.entities import LightSteps

Doubles = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LightParts:
    """What a learned channel's vectors are sums of.

    Attributes:
        weights: (n_items × n_columns) float32 CSR, how strongly facts tie items to columns.
        vectors: (n_columns × dim) float32, what each brings; 0 for a column that brings nothing.
        steps: the steps over users; None where there are none.
        histories: the events that the encoder walked.
    """

    weights: sp.csr_matrix
    vectors: npt.NDArray[np.float32]
    steps: LightSteps | None
    histories: Histories

    def change(
        self,
        items: npt.NDArray[np.integer],
        events: Iterable[tuple[int, int]],
        facts: Iterable[tuple[int, int]],
    ) -> Doubles:
        """What the vectors of some items change by without some edges, (n × dim) float64.

        Args:
            items: (n) item numbers.
            events: (user, item) numbers; all events of the user on the item are gone.
            facts: (item, column) numbers.
        """
        moved: Doubles = np.zeros((self.weights.shape[0], self.vectors.shape[1]))
        for item, column in facts:
            moved[item] -= float(self.weights[item, column]) * self.vectors[column]
        total: Doubles = moved[items]
        if self.steps is None:
            return total
        pairs, last = np.array(sorted(events), np.int64).reshape(-1, 2), len(self._walked) - 1
        for step, weights in enumerate(self.steps.weights.astype(np.float64)):
            each = np.asarray(items if step == last else np.arange(len(moved)), np.int64)
            moved = self._step(self._walked[step], moved, weights, pairs, each)
            total += moved if step == last else moved[items]
        return total

    def _step(
        self, before: Doubles, moved: Doubles, weights: Doubles, pairs: Numbers, items: Numbers
    ) -> Doubles:
        """What a step brings to the items, without the edges less with them, (n × dim).

        Args:
            before: (n_items × dim) what is walked with.
            moved: (n_items × dim) what that changes by.
            weights: (n_kinds × dim).
            pairs: (n × 2) users and items whose events are gone.
            items: (n) item numbers.
        """
        changed = np.union1d(np.flatnonzero(moved.any(axis=1)), pairs[:, 1])
        users = np.union1d(self._met[:, changed].indices, pairs[:, 0])
        with_edges = [matrix[users] for matrix in self._symmetric]
        without = self._without(users, pairs)
        one = sum(matrix @ before for matrix in with_edges)
        other = sum(matrix @ (before + moved) for matrix in without)
        out = np.zeros((len(items), before.shape[1]))
        for weight, old, new in zip(weights, with_edges, without, strict=True):
            out += weight * (new[:, items].T @ other - old[:, items].T @ one)
        return out

    def _without(self, users: Numbers, pairs: Numbers) -> list[sp.csr_matrix]:
        """The rows of some users (sorted) in A_k without the pairs, for each kind."""
        made = []
        rows = np.searchsorted(users, pairs[:, 0])
        shape = len(users), self._met.shape[1]
        gone = sp.csr_matrix((np.ones(len(pairs)), (rows, pairs[:, 1])), shape)
        for matrix, (of_users, of_items) in zip(self._kinds, self._degrees, strict=True):
            own = matrix[users]
            lost = own.multiply(gone).tocsr()
            left = (own - lost).tocsr()
            left_users = np.maximum(of_users[users] - _sums(lost, 1), 1.0)
            left_items = np.maximum(of_items - _sums(lost, 0), 1.0)
            scaled = sp.diags(left_users**-0.5) @ left @ sp.diags(left_items**-0.5)
            made.append(sp.csr_matrix(scaled))
        return made

    @cached_property
    def _kinds(self) -> list[sp.csr_matrix]:
        """X_k, each (n_users × n_items) float64 of ones."""
        kinds = []
        for matrix in self.histories.by_kind().values():
            ones = sp.csr_matrix(matrix, dtype=np.float64, copy=True)
            ones.data[:] = 1.0
            kinds.append(ones)
        return kinds

    @cached_property
    def _degrees(self) -> list[tuple[Doubles, Doubles]]:
        """Of the users and the items in each X_k."""
        return [(_sums(matrix, 1), _sums(matrix, 0)) for matrix in self._kinds]

    @cached_property
    def _symmetric(self) -> list[sp.csr_matrix]:
        """A_k."""
        return [
            sp.csr_matrix(
                sp.diags(np.maximum(users, 1.0) ** -0.5)
                @ matrix
                @ sp.diags(np.maximum(items, 1.0) ** -0.5)
            )
            for matrix, (users, items) in zip(self._kinds, self._degrees, strict=True)
        ]

    @cached_property
    def _met(self) -> sp.csc_matrix:
        return self.histories.binary().tocsc()

    @cached_property
    def _walked(self) -> list[Doubles]:
        """y_0 and on, as many as there are steps, each (n_items × dim)."""
        assert self.steps is not None
        made = [self.steps.base.astype(np.float64)]
        for weights in self.steps.weights[:-1]:
            users = sum(matrix @ made[-1] for matrix in self._symmetric)
            pairs = zip(weights, self._symmetric, strict=True)
            made.append(np.asarray(sum(w * (matrix.T @ users) for w, matrix in pairs)))
        return made


def _sums(matrix: sp.csr_matrix, axis: int) -> Doubles:
    return np.asarray(matrix.sum(axis=axis), np.float64).ravel()
