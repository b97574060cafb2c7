"""A model's lists as relationships from a graph's users to its items. They are no facts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kgrank.kg.graph import KnowledgeGraph

RECOMMENDED = "RECOMMENDED"
"""The type of the relationships."""
MODEL_PROPERTY = "kgrank_model"
"""A property that they alone have: a relation of the graph may be of the same type."""


@dataclass(frozen=True, eq=False)
class NodeScores:
    """The lists of one model, a row for each item of each list.

    Attributes:
        model: whose lists they are, such as the name of a bundle.
        users, items: (n,) int32: the nodes of the graph that they were made for.
        scores: (n,) float32.
        ranks: (n,) int32, from 1.
    """

    model: str
    users: NDArray[np.int32]
    items: NDArray[np.int32]
    scores: NDArray[np.float32]
    ranks: NDArray[np.int32]

    @classmethod
    def of_lists(
        cls, graph: KnowledgeGraph, model: str, lists: Iterable[pd.DataFrame]
    ) -> NodeScores:
        """The rows of tables (`user_id`, `item_id`, `score`, `rank`) whose ends the graph has."""
        found = [cls.none()]
        for table in lists:
            user = graph.users.numbers(table["user_id"], missing="negative")
            item = graph.items.numbers(table["item_id"], missing="negative")
            known = (user >= 0) & (item >= 0)
            found.append(
                cls(
                    model,
                    graph.nodes.user_nodes[user[known]].astype(np.int32),
                    graph.nodes.item_nodes[item[known]].astype(np.int32),
                    table["score"].to_numpy(np.float32)[known],
                    table["rank"].to_numpy(np.int32)[known],
                )
            )
        return cls(
            model,
            np.concatenate([one.users for one in found]),
            np.concatenate([one.items for one in found]),
            np.concatenate([one.scores for one in found]),
            np.concatenate([one.ranks for one in found]),
        )

    @classmethod
    def none(cls) -> NodeScores:
        """No lists: those written before go."""
        number, score = np.empty(0, np.int32), np.empty(0, np.float32)
        return cls("", number, number, score, number)

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: NDArray[np.int64]) -> NodeScores:
        """Some of the rows."""
        users, items = self.users[rows], self.items[rows]
        return NodeScores(self.model, users, items, self.scores[rows], self.ranks[rows])

    def fingerprint(self, graph: KnowledgeGraph) -> str:
        """The sha256 (hex) of the model's name and the rows, in their order; "" without any."""
        if not len(self):
            return ""
        digest = hashlib.sha256(f"{self.model}\n{len(self)}\n".encode())
        digest.update("\n".join(graph.nodes.ids.to_pylist()).encode())
        for column in (self.users, self.items, self.scores, self.ranks):
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()
