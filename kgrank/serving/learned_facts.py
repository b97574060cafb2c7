"""What facts bring to the learned channel, and the ways over them (see `kgrank.serving.paths`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from kgrank.fusion.attribution import SharedFacts
from kgrank.fusion.channels import DenseFeatures
from kgrank.fusion.light import tied
from kgrank.kg.entities import column_vectors, fact_weights
from kgrank.serving.bundle import Bundle

Floats = npt.NDArray[np.float32]


def fact_parts(bundle: Bundle, form: DenseFeatures) -> tuple[sp.csr_matrix, Floats] | None:
    """What facts bring to a channel's vectors: the weights of columns, and the columns' vectors.

    Columns are those of `Bundle.item_entities`. None where the vectors are no sums of such parts.
    """
    columns = bundle.item_entities.columns
    if not form.entities or form.lengths is None or not len(columns):
        return None
    vectors = column_vectors(form.entities, bundle.graph, columns)
    return fact_weights(bundle.graph, bundle.items), vectors


def shared_facts(
    form: DenseFeatures, weights: sp.csr_matrix, vectors: Floats
) -> SharedFacts | None:
    """⟨part of h by e, part of i by e⟩ = a[h, e] ‖x_e‖ / ‖h‖ · a[i, e] ‖x_e‖ / ‖i‖.

    Args:
        form: the channel.
        weights, vectors: its `fact_parts`.
    """
    if form.lengths is None:
        return None
    sized = weights @ sp.diags(np.linalg.norm(vectors, axis=1))
    left, right = (
        sp.csr_matrix(sp.diags(1.0 / np.maximum(of, 1e-12)) @ sized, dtype=np.float32)
        for of in form.lengths
    )
    for matrix in (left, right):
        matrix.eliminate_zeros()
    return SharedFacts.of(left, right)


def tied_facts(
    bundle: Bundle,
    item_nodes: npt.NDArray[np.int64],
    form: DenseFeatures,
    weights: sp.csr_matrix,
    vectors: Floats,
) -> SharedFacts | None:
    """The ways of `kgrank.fusion.light.tied`, each over the item of the history itself.

    Args:
        bundle: of the channel.
        item_nodes: (n_items) the node of each item number, -1 for none.
        form: the channel.
        weights, vectors: its `fact_parts`.
    """
    columns, n_items = bundle.item_entities.columns, len(bundle.items)
    places = np.minimum(np.searchsorted(columns, item_nodes), len(columns) - 1)
    known = np.flatnonzero(columns[places] == item_nodes)
    ones = np.ones(len(known), np.float32)
    to_items = sp.csr_matrix((ones, (places[known], known)), (len(columns), n_items))
    of_items = np.zeros((n_items, vectors.shape[1]), np.float32)
    of_items[known] = vectors[places[known]]
    steps = form.entities.steps if form.entities else None
    shares = tied(form, steps, sp.csr_matrix(weights @ to_items), of_items)
    if not shares.nnz:
        return None
    return SharedFacts.of(sp.identity(n_items, np.float32, "csr"), shares.T.tocsr())
