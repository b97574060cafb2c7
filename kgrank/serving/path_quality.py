"""What is known to make paths good reasons: recent, shared by many or few, of different types.

After Balloccu et al., "Post Processing Recommender Systems with Knowledge Graphs for Recency,
Popularity, and Diversity of Explanations", SIGIR 2022, with the smoothing of their code and of
hopwise: pandas' `ewm(span=n)`, and of values that are all the same their order. One path of each
listed product is judged.

- **lir**, linking interaction recency: how recent the user's newest event on the path's product
  is, among the user's products;
- **sep**, shared entity popularity: how many edges the node before the item has, among nodes of its
  type;
- **etd**, explanation type diversity: different last relations over paths, or over the relations of
  the graph where those are fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from kgrank.serving.bundle import Bundle
from kgrank.serving.explanation import Path

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PathQuality:
    """LIR, SEP and ETD of paths, see above."""

    bundle: Bundle

    def of(self, user: int, paths: Sequence[Path]) -> dict[str, float]:
        """The means over some paths of one user (at least one), `lir` only where events have times.

        Args:
            user: user number.
            paths: to different products.
        """
        found = {"edges": float(np.mean([len(path.edges) for path in paths]))}
        recency = self._recency(user)
        if recency is not None:
            products = self.bundle.items.numbers([path.nodes[1].id for path in paths])
            found["lir"] = float(np.mean([recency[product] for product in products.tolist()]))
        nodes = [path.nodes[-2] for path in paths]
        numbers = [self.bundle.graph.node_number(node.type, node.id) for node in nodes]
        found["sep"] = float(self._popularity[numbers].mean())
        kinds = {path.edges[-1].relation for path in paths}
        found["etd"] = len(kinds) / min(len(paths), len(set(self.bundle.graph.relations)))
        return found

    def _recency(self, user: int) -> dict[int, float] | None:
        """LIR of each product of the history, by its newest event."""
        histories = self.bundle.histories
        span = slice(histories.starts[user], histories.starts[user + 1])
        newest = pd.Series(histories.times[span]).groupby(histories.items[span]).max()
        if newest.isna().any():
            return None
        ordered = newest.sort_values(kind="stable")
        values = smoothed(np.asarray(ordered, np.float64))
        return dict(zip(ordered.index.tolist(), values.tolist(), strict=True))

    @cached_property
    def _popularity(self) -> Doubles:
        """(n_nodes) SEP of each node among those of its type."""
        graph = self.bundle.graph
        degree, found = graph.degree(), np.zeros(len(graph.nodes))
        for number in range(len(graph.nodes.type_names)):
            of_type = np.flatnonzero(graph.nodes.types == number)
            order = of_type[np.argsort(degree[of_type], kind="stable")]
            found[order] = smoothed(degree[order].astype(np.float64))
        return found


def smoothed(values: Doubles) -> Doubles:
    """An exponentially weighted mean of ascending values, brought to 0 … 1; of one value, 0.

    Args:
        values: (n) float64.
    """
    if len(values) < 2:
        return np.zeros(len(values))
    if values[0] == values[-1]:
        values = np.arange(len(values), dtype=np.float64)
    means = pd.Series(values).ewm(span=len(values)).mean().to_numpy()
    return np.asarray((means - means.min()) / (means.max() - means.min()), np.float64)
