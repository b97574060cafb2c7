"""What light steps over users say of two items: which part of the learned channel went over whom.

Before they are of length 1, the vectors of "light" (`kgrank.kg.gnn`) are sums over users u:

    S_h = s_h + Σ_u n[u, h]      T_i = x_i + Σ_u n[u, i]      n[u, i] = Σ_t W_t[u, i] ⊙ p_t[u]
    p_t[u] = Σ_j a[u, j] y_t-1,j      W_t[u, i] = Σ_k w_tk A_k[u, i]      a = Σ_k A_k

with y_0 = x and y_t what step t brings (`LightSteps`). Of ⟨S_h, T_i⟩ these terms went from h over u
to i, and each is in the sum once:

    ⟨n[u, h], n[u, i]⟩                            what u brings to both
    a[u, i] · ⟨Σ_t W_t[u, h] ⊙ y_t-1,i , x_i⟩     what came from i over u to h, met again in i
    a[u, h] · ⟨s_h , Σ_t W_t[u, i] ⊙ y_t-1,h⟩     what came from h over u to i, met again in h

Their sum is the way's share; divided by both lengths it is a part of v(h, i). A share at or below 0
is no way. What else is in the product has no way of at most four edges: own parts and words that
are alike, and what came from a third item, which neither product has met over u.

A fact that ties h and i to each other is a way too (`tied`). With f_h what it brings of h to i and
g_i what it brings of i to h, its terms are ⟨s_h, f_h⟩ and ⟨g_i, x_i⟩, with ⟨g_i, f_h⟩ of both once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from kgrank.compiled import compiled
from kgrank.fusion.channels import DenseFeatures
from kgrank.fusion.history import Histories
from kgrank.fusion.local_ridge import Floats, Ints, Longs
from kgrank.fusion.lookup import place_in, table_of
from kgrank.fusion.ways import Found, Ways, added, room
from kgrank.kg.entities import LightSteps, symmetric


@dataclass(frozen=True, eq=False)
class SharedUsers:
    """v(h, i) of a light encoder, as far as it went over users.

    Attributes:
        starts, items, entries: the rows A_k of users, all kinds in one pattern: (n_users + 1)
            int64, (n_pairs) int32, (n_pairs × n_kinds) float32, 0 where a kind is not.
        item_starts, users, pairs: the same by item: the user of each pair, and its place above.
        steps: (hops × n_items × dim) float32, y_0 to y_hops-1.
        sources: (n_items × dim) float32, s.
        weights: (hops × n_kinds × dim) float32, w.
        lengths: (2 × n_items) float32, of S and T.
    """

    starts: Longs
    items: Ints
    entries: Floats
    item_starts: Longs
    users: Ints
    pairs: Longs
    steps: Floats
    sources: Floats
    weights: Floats
    lengths: Floats

    @classmethod
    def of(cls, form: DenseFeatures, steps: LightSteps, histories: Histories) -> SharedUsers | None:
        """Of a learned channel and the events it was fitted on; None where they do not fit.

        Args:
            form: the channel, with lengths.
            steps: its steps.
            histories: what the encoder walked.
        """
        kinds = [symmetric(matrix) for matrix in histories.by_kind().values()]
        if len(kinds) != steps.weights.shape[1] or form.lengths is None:
            return None
        pattern = sp.csr_matrix(histories.binary())
        pattern.sort_indices()
        entries = np.zeros((pattern.nnz, len(kinds)), np.float32)
        numbered = sp.csr_matrix(
            (np.arange(1, pattern.nnz + 1), pattern.indices, pattern.indptr), pattern.shape
        )
        for number, matrix in enumerate(kinds):
            ones = sp.csr_matrix(
                (np.ones(matrix.nnz, np.int64), matrix.indices, matrix.indptr), matrix.shape
            )
            places = ones.multiply(numbered).tocsr()
            places.sort_indices()
            matrix.sort_indices()
            entries[places.data - 1, number] = matrix.data
        turned = numbered.tocsc()
        made = [steps.base]
        for weights in steps.weights[:-1]:
            of_users = sum(matrix @ made[-1] for matrix in kinds)
            made.append(sum(w * (m.T @ of_users) for w, m in zip(weights, kinds, strict=True)))
        lengths = torch.from_numpy(form.lengths)[:, :, None]
        own, targets = form.of_history.cpu() * lengths[0], form.values.cpu() * lengths[1]
        sources = np.asarray(own - (targets - torch.from_numpy(steps.base)), np.float32)
        return cls(
            pattern.indptr.astype(np.int64),
            pattern.indices.astype(np.int32),
            entries,
            turned.indptr.astype(np.int64),
            turned.indices.astype(np.int32),
            turned.data.astype(np.int64) - 1,
            np.ascontiguousarray(np.stack(made), np.float32),
            sources,
            np.ascontiguousarray(steps.weights, np.float32),
            form.lengths,
        )

    def shares(
        self, items: npt.NDArray[np.integer], targets: npt.NDArray[np.integer], user: int
    ) -> Ways:
        """The ways over users from each of `items` to each of `targets`.

        Args:
            items: (n) item numbers, each once.
            targets: (n_targets) item numbers.
            user: whose history it is (-1: nobody's); the user's own row is no way.
        """
        return Ways(
            *_over_users(
                np.asarray(items, np.int32),
                np.asarray(targets, np.int32),
                user,
                (self.starts, self.item_starts, self.pairs),
                (self.items, self.users),
                self.entries,
                self.steps,
                self.sources,
                self.weights,
                self.lengths,
            )
        )


def tied(
    form: DenseFeatures,
    steps: LightSteps | None,
    weights: sp.csr_matrix,
    vectors: npt.NDArray[np.float32],
) -> sp.csr_matrix:
    """v(h, i) of a light encoder, as far as it went over a fact that ties the two to each other.

    Args:
        form: the channel, with lengths.
        steps: its steps over users; None where it takes none.
        weights: (n_items × n_items) CSR, row i column j: how strongly facts to j tie i.
        vectors: (n_items × dim) what an item brings by a fact to it.

    Returns:
        (n_items × n_items) float32 CSR, row h column i, entries > 0.
    """
    if form.lengths is None or not weights.nnz:
        return sp.csr_matrix(weights.shape, dtype=np.float32)
    lengths = torch.from_numpy(form.lengths)[:, :, None]
    sources = (form.of_history.cpu() * lengths[0]).numpy()
    base = (form.values.cpu() * lengths[1]).numpy()
    if steps is not None:
        sources, base = sources - (base - steps.base), steps.base
    of_sources, of_targets = (np.einsum("nd,nd->n", part, vectors) for part in (sources, base))
    both = sp.coo_matrix(weights.multiply(weights.T))
    both.data = both.data * np.einsum("nd,nd->n", vectors[both.row], vectors[both.col])
    shares = sp.diags(of_sources) @ weights.T + weights @ sp.diags(of_targets) - both.tocsr()
    of_h, of_i = (sp.diags(1.0 / np.maximum(of, 1e-12)) for of in form.lengths)
    shares = sp.csr_matrix(of_h @ shares @ of_i, dtype=np.float32)
    shares.data = np.maximum(shares.data, 0.0)
    shares.eliminate_zeros()
    return shares


@compiled
def _over_users(
    wanted: Ints,
    targets: Ints,
    user: int,
    rows: tuple[Longs, Longs, Longs],
    columns: tuple[Ints, Ints],
    entries: Floats,
    steps: Floats,
    sources: Floats,
    weights: Floats,
    lengths: Floats,
) -> Found:
    """Target, place, user and share of every way over a user who met both."""
    (starts, item_starts, pairs), (items, users) = rows, columns
    hops, _, dim = weights.shape
    places = table_of(wanted)
    profile = np.empty((hops, dim), np.float32)  # p of one user
    near = np.empty((hops, dim), np.float32)  # W of one item
    goal = np.empty((hops, dim), np.float32)
    ways, n = room(256), 0
    for number in range(len(targets)):
        target = targets[number]
        for of_target in range(item_starts[target], item_starts[target + 1]):
            other = users[of_target]
            known = False
            for pair in range(starts[other], starts[other + 1]):
                item = items[pair]
                known |= item != target and place_in(places, wanted, item) >= 0
            if other == user or not known:
                continue
            profile[:] = 0.0
            for pair in range(starts[other], starts[other + 1]):
                weight = entries[pair].sum()
                for hop in range(hops):
                    for d in range(dim):
                        profile[hop, d] += weight * steps[hop, items[pair], d]
            _weighted(weights, entries[pairs[of_target]], goal)
            to_target = entries[pairs[of_target]].sum()
            for pair in range(starts[other], starts[other + 1]):
                item, place = items[pair], place_in(places, wanted, items[pair])
                if place < 0 or item == target:
                    continue
                _weighted(weights, entries[pair], near)
                to_item, share = entries[pair].sum(), np.float64(0.0)
                for d in range(dim):
                    brought_near = brought_goal = from_goal = from_item = np.float32(0.0)
                    for hop in range(hops):
                        brought_near += near[hop, d] * profile[hop, d]
                        brought_goal += goal[hop, d] * profile[hop, d]
                        from_goal += near[hop, d] * steps[hop, target, d]
                        from_item += goal[hop, d] * steps[hop, item, d]
                    share += brought_near * brought_goal
                    share += to_target * from_goal * steps[0, target, d]
                    share += to_item * from_item * sources[item, d]
                size = np.float64(lengths[0, item]) * lengths[1, target]
                if share > 0.0 and size > 0.0:
                    ways = added(ways, n, number, place, other, share / size)
                    n += 1
    return ways[0][:n], ways[1][:n], ways[2][:n], ways[3][:n]


@compiled
def _weighted(weights: Floats, entries: Floats, out: Floats) -> None:
    """Σ_k w_tk A_k of one pair into `out`, (hops × dim)."""
    out[:] = 0.0
    for hop in range(len(out)):
        for kind in range(len(entries)):
            if entries[kind] != 0.0:
                for d in range(out.shape[1]):
                    out[hop, d] += weights[hop, kind, d] * entries[kind]
