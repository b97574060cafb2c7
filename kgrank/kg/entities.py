"""What a graph encoder has learned of the graph's entities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
import torch

from kgrank.kg.exchange import entity_features
from kgrank.kg.vocabulary import USER

if TYPE_CHECKING:
    from kgrank.kg.gnn import GraphEncoder, GraphInput
    from kgrank.kg.graph import KnowledgeGraph
    from kgrank.kg.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class LightSteps:
    """The steps item → user → item of "light", from which its items' vectors can be made again.

    A_k are `symmetric` behaviours of kind k: y_0 = base, y_t = Σ_k w_tk ⊙ A_kᵀ (Σ_k A_k y_t-1),
    and a target is Σ_t y_t before it is of length 1.

    Attributes:
        base: (n_items × dim) float32: an item's own part, what words and text say, and its facts.
        weights: (hops × n_kinds × dim) float32, kinds in the order of `Histories.by_kind`.
    """

    base: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class EntityVectors:
    """Vectors of entities, in the space of the items' vectors.

    Attributes:
        ids: (n) entity ids, no two the same.
        values: (n × dim) float32.
        steps: the steps over users beside them; None where the encoder takes none.
        items: the same of items that facts tie other items to; None where there are none.
    """

    ids: tuple[str, ...]
    values: npt.NDArray[np.float32]
    steps: LightSteps | None = None
    items: EntityVectors | None = None

    def save(self, path: Path) -> None:
        """Write a Parquet file with the columns `entity_id` and `vector`: no steps, no items."""
        ids = pa.array(self.ids, pa.string())
        flat = pa.array(np.ascontiguousarray(self.values, np.float32).reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(flat, self.values.shape[1])
        pq.write_table(pa.table({"entity_id": ids, "vector": vectors}), path, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> EntityVectors:
        """What `save` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        table = pq.read_table(path).combine_chunks()
        ids, column = table["entity_id"].to_pylist(), table["vector"]
        fixed = pa.types.is_fixed_size_list(column.type)
        if column.null_count or not fixed or column.type.value_type != pa.float32():
            raise ValueError(f"{path.name} holds {column.type}, no vectors")
        flat = np.concatenate([np.empty(0, np.float32), *(c.flatten() for c in column.chunks)])
        values = flat.reshape(len(ids), column.type.list_size)
        if not np.isfinite(values).all():
            raise ValueError(f"{path.name} holds numbers that are not finite")
        return cls(tuple(ids), values)


def entity_vectors(encoder: GraphEncoder, graph: GraphInput) -> EntityVectors:
    """The vectors of the entities that two items or more share a fact of.

    For "light" it is what an item gains by a fact to the entity, before the item's vector is
    brought to length 1: the sum over an item's facts, times their weights in `GraphInput.known`, is
    what `LightEncoder.brought` begins with. Where facts of several relations lead to one entity,
    it is their mean over the items. An item that facts lead to has such a vector too, beside its
    own. For the other encoders it is the learned vector that the convolutions start from; what an
    item gains from it is no longer a sum.

    Args:
        encoder: trained on the graph, on any device.
        graph: what it was made of.
    """
    from kgrank.kg.gnn import LightEncoder, type_starts
    from kgrank.kg.message_passing import MessageEncoder

    ids: list[str] = []
    parts = [np.empty((0, encoder.target.shape[1]), np.float32)]
    of_tails = steps = items = None
    if isinstance(encoder, LightEncoder):
        with torch.no_grad():
            of_tails = _means(graph) @ encoder.facts().cpu().numpy()
            if len(encoder.hop):
                base = (encoder.base() + encoder.known()).cpu().numpy()
                steps = LightSteps(base, encoder.hop.cpu().numpy())
    for kind, start in type_starts(graph.data)[0].items():
        own = graph.nodes - start
        tails = np.flatnonzero((own >= 0) & (own < int(graph.data[kind].num_nodes)))
        if kind in ("item", "user"):
            if kind == "item" and of_tails is not None and len(tails):
                named = (graph.data[kind].node_id[number] for number in own[tails])
                items = EntityVectors(tuple(named), of_tails[tails])
            continue
        ids += [graph.data[kind].node_id[number] for number in own[tails]]
        if of_tails is not None:
            parts.append(of_tails[tails])
        elif isinstance(encoder, MessageEncoder):
            parts.append(encoder.table(kind).detach().cpu().numpy()[own[tails]])
    return EntityVectors(tuple(ids), np.concatenate(parts), steps, items)


def symmetric(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """D_u^-1/2 · X · D_i^-1/2 of a binary X (n_users × n_items), as in LightGCN."""
    of_users, of_items = inverse_roots(matrix)
    weights = np.repeat(of_users, np.diff(matrix.indptr)) * of_items[matrix.indices]
    return sp.csr_matrix((weights, matrix.indices.copy(), matrix.indptr.copy()), matrix.shape)


def inverse_roots(matrix: sp.csr_matrix) -> tuple[npt.NDArray[np.float32], ...]:
    """1 / √degree of the users, (n_users) float32, and of the items, (n_items); 1 for degree 0.

    Args:
        matrix: (n_users × n_items) CSR without an entry twice.
    """
    degrees = np.diff(matrix.indptr), np.bincount(matrix.indices, minlength=matrix.shape[1])
    return tuple(np.maximum(of, 1).astype(np.float32) ** np.float32(-0.5) for of in degrees)


def column_vectors(
    entities: EntityVectors, graph: KnowledgeGraph, columns: npt.NDArray[np.integer]
) -> npt.NDArray[np.float32]:
    """What each column of `fact_weights` brings, (n_columns × dim); 0 where that is not known.

    Args:
        entities: of a "light" encoder.
        graph: what it has learned on.
        columns: (n_columns) node numbers, ascending.
    """
    values = np.zeros((len(columns), entities.values.shape[1]), np.float32)
    kinds = [(entities, graph.entities, graph.nodes.entity_nodes)]
    if entities.items is not None:
        kinds.append((entities.items, graph.items, graph.nodes.item_nodes))
    for vectors, vocabulary, nodes in kinds:
        if not len(columns) or not len(nodes):
            continue
        numbers = vocabulary.numbers(list(vectors.ids), missing="negative")
        places = np.minimum(np.searchsorted(columns, nodes[numbers]), len(columns) - 1)
        kept = (numbers >= 0) & (columns[places] == nodes[numbers])
        values[places[kept]] = vectors.values[kept]
    return values


def fact_weights(graph: KnowledgeGraph, items: Vocabulary) -> sp.csr_matrix:
    """How strongly items are tied to entities in `GraphInput.known`, (n_items × n_columns) float32.

    A column stands for a node as in `KnowledgeGraph.item_entity_matrix`; where several relations
    lead to one node, its entry is their sum. Times the vectors of `entity_vectors` it is what facts
    bring to an item.

    Args:
        graph: what `GraphInput` was made of.
        items: which items are rows, in which order.
    """
    every = graph.edge_list()
    knowledge = np.flatnonzero(~graph.behaviours[every.relations])
    row_of = np.full(len(graph.nodes), -1, dtype=np.int64)
    row_of[graph.nodes.item_nodes] = items.numbers(graph.items.array, missing="negative")
    ends = every.heads[knowledge], every.tails[knowledge]
    own, others = np.concatenate(ends), np.concatenate(ends[::-1])
    ways = 2 * every.relations[knowledge].astype(np.int64)
    facts = np.concatenate([ways, ways + 1]) * len(graph.nodes) + others
    kept = (row_of[own] >= 0) & (graph.nodes.types[others] != USER)
    said, places = np.unique(facts[kept], return_inverse=True)
    weights = np.tile(every.weights[knowledge], 2)[kept]
    known = sp.csr_matrix(
        (weights, (row_of[own[kept]], places)), (len(items), len(said)), dtype=np.float32
    )
    known.sum_duplicates()
    known = entity_features(known)
    columns = graph.item_entity_matrix(items).columns
    nodes = said % len(graph.nodes)
    column = np.minimum(np.searchsorted(columns, nodes), max(len(columns) - 1, 0))
    listed = np.flatnonzero(columns[column] == nodes) if len(columns) else np.empty(0, np.int64)
    ones = np.ones(len(listed), np.float32)
    to_columns = sp.csr_matrix((ones, (listed, column[listed])), (len(said), len(columns)))
    return sp.csr_matrix(known @ to_columns, dtype=np.float32)


def _means(graph: GraphInput) -> sp.csr_matrix:
    """(n_tails × n_facts) float32, rows that sum to 1: each fact as often as items have it."""
    counts = np.bincount(graph.known.indices, minlength=len(graph.tails)).astype(np.float32)
    places = (graph.tails, np.arange(len(graph.tails)))
    of_facts = sp.csr_matrix((counts, places), (len(graph.nodes), len(graph.tails)))
    totals = np.asarray(of_facts.sum(axis=1)).ravel()
    return sp.csr_matrix(sp.diags(1.0 / totals) @ of_facts, dtype=np.float32)
