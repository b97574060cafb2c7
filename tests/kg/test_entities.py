"""What facts bring to items: the same numbers from the graph as the encoder learned on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from kgrank.data import sample_shop
from kgrank.kg.entities import fact_weights
from kgrank.kg.gnn import GraphInput
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.tables import read_tables


@pytest.fixture(scope="module")
def graph() -> KnowledgeGraph:
    """The sample shop, with an entity of several relations and products tied to each other."""
    graph = KnowledgeGraph.from_tables(read_tables(sample_shop()))
    items = graph.items.ids()
    pairs = [(items[n], relation, items[n + 1]) for n in range(5) for relation in ("near", "like")]
    pairs += [(items[n], "sold_with", "brand:Nordfell") for n in range(8)]
    columns = ["head", "relation", "tail"]
    return graph.with_triples(pd.DataFrame(pairs, columns=columns).assign(weight=0.5))


def test_weights_are_those_that_the_encoder_learns_on(graph: KnowledgeGraph) -> None:
    n_items = len(graph.items)
    words = sp.csr_matrix((n_items, 0), dtype=np.float32)
    known = GraphInput.of(graph.to_pyg(), {}, words)
    starts = {}
    total = 0
    for kind in known.data.node_types:
        starts[kind] = total
        total += int(known.data[kind].num_nodes)
    found = fact_weights(graph, graph.items)
    columns = graph.item_entity_matrix(graph.items).columns
    of_node = {(graph.node(int(c)).type, graph.node(int(c)).id): k for k, c in enumerate(columns)}
    wanted = np.zeros(found.shape)
    entries = known.known.tocoo()
    for item, fact, weight in zip(entries.row, entries.col, entries.data, strict=True):
        number = int(known.nodes[known.tails[fact]])
        kind = max((k for k in starts if starts[k] <= number), key=lambda k: starts[k])
        id_ = known.data[kind].node_id[number - starts[kind]]
        wanted[item, of_node[kind, id_]] += weight
    assert found.toarray() == pytest.approx(wanted, abs=1e-6)
    assert found.nnz > n_items
