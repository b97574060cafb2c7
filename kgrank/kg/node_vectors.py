"""Vectors of an embedding store as properties of a graph's nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgrank.errors import StoreError
from kgrank.kg.embeddings import EmbeddingStore
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.vocabulary import Vocabulary

GROUPS = {
    "item": "items",
    "learned": "items",
    "learned_history": "items",
    "user": "users",
    "learned_user": "users",
    "entity": "entities",
}
"""Group of the store → the kind of node that it is of."""


@dataclass(frozen=True, eq=False)
class NodeVectors:
    """Vectors by property.

    Attributes:
        groups: property ("vector_item") → kind of node, ids (n), vectors (n × dim) float32.
    """

    groups: Mapping[str, tuple[str, Vocabulary, NDArray[np.float32]]]

    @classmethod
    def of_store(cls, store: EmbeddingStore) -> NodeVectors:
        """The groups of a store that are of nodes: group `item` becomes the property `vector_item`.

        Raises:
            StoreError: there is no such group, or a file is damaged.
        """
        groups = {}
        for group in sorted(set(store.groups) & set(GROUPS)):
            ids = Vocabulary.from_ids(store.ids(group))
            groups[f"vector_{group}"] = GROUPS[group], ids, store.vectors(group, ids.array)
        if not groups:
            raise StoreError(
                f"{store.path}: found the groups {', '.join(store.groups) or 'none'}; allowed: at "
                f"least one of {', '.join(GROUPS)}. Write them with kgrank vectors."
            )
        return cls(groups)

    @property
    def names(self) -> list[str]:
        """The properties."""
        return list(self.groups)

    def fingerprint(self) -> str:
        """The sha256 (hex) of all ids and vectors; "" without any."""
        if not self.groups:
            return ""
        digest = hashlib.sha256()
        for name, (_, ids, vectors) in self.groups.items():
            digest.update(f"{name} {len(ids)} {vectors.shape[1]} ".encode())
            digest.update("\n".join(ids.array.to_pylist()).encode())
            digest.update(np.ascontiguousarray(vectors).data)
        return digest.hexdigest()

    def of_nodes(self, graph: KnowledgeGraph) -> dict[str, tuple[NDArray[np.int32], Any]]:
        """Property → for each node the row of its vector (n_nodes,) int32, -1 for none; vectors."""
        found = {}
        for name, (kind, ids, vectors) in self.groups.items():
            known: Vocabulary = getattr(graph, kind)
            nodes = {
                "items": graph.nodes.item_nodes,
                "users": graph.nodes.user_nodes,
                "entities": graph.nodes.entity_nodes,
            }[kind]
            rows = np.full(len(graph.nodes), -1, dtype=np.int32)
            rows[nodes] = ids.numbers(known.array, missing="negative")
            found[name] = rows, vectors
        return found


def hashes(
    vectors: Mapping[str, tuple[NDArray[np.int32], NDArray[np.float32]]], n_nodes: int
) -> NDArray[np.uint64]:
    """(n_nodes,) uint64: a hash of each node's vectors, 0 where it has none."""
    out = np.zeros(n_nodes, dtype=np.uint64)
    for name, (rows, values) in vectors.items():
        for node in np.flatnonzero(rows >= 0):
            digest = hashlib.blake2b(values[rows[node]].tobytes(), digest_size=8, key=name.encode())
            digest.update(int(out[node]).to_bytes(8, "little"))
            out[node] = int.from_bytes(digest.digest(), "little")
    return out
