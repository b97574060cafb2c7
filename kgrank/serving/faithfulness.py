"""Whether the paths that are shown are why: their edges removed, the score worked out again.

Of sampled users the best new product is explained. Then

- **drop**: the edges of the shown paths, and of those that they stand for, are removed, and the
  score falls by so much of all that moved it, |bias| + Σ |contribution|; beside it the fall without
  as many random edges of the same user and item, and the difference with a bootstrapped interval.
  For each path: instead of the user's event on its product h one on a random product of the
  history, instead of the edge at h a random one of that product, instead of the edge at the item a
  random one of the item. Most of that is the event; so it is told again for the edges **beyond the
  user** alone, with the events left where they are. `kgrank.fusion.removal` says what the model
  makes of it.
- **covered**: the part of the personal score (Σ contribution) that the shown paths carry alone,
  with those that they stand for, and that all paths carry.
- **stability**: the shown paths of a graph without a random 1 % of its events and facts, as
  |both| / |either| (Jaccard); weights and vectors stay. Other users count as one.
- **stability_seeds**: the same overlap with what bundles fitted again with other seeds show for the
  same user and product, of paths (by their nodes) and of their edges (by relation, too): the mean
  over those bundles. Jaccard's index as the likeness of what several runs picked is that of
  Kalousis, Prados and Hilario, "Stability of feature selection algorithms", Knowledge and
  Information Systems 12, 2007.

and the quality of the strongest path of each of the ten best products
(`kgrank.serving.path_quality`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from kgrank.errors import ConfigError, ModelError
from kgrank.fusion.channels import DenseFeatures, SparseFeatures
from kgrank.fusion.evidence import Steps
from kgrank.fusion.item_item import Ridge
from kgrank.fusion.light_removal import LightParts
from kgrank.fusion.metrics import paired_bootstrap
from kgrank.fusion.model import EventParts
from kgrank.fusion.removal import Removed, Rescorer
from kgrank.kg.exchange import unit_rows
from kgrank.kg.vocabulary import USER
from kgrank.progress import Progress, silent
from kgrank.serving.bundle import Bundle
from kgrank.serving.explaining import Explainer
from kgrank.serving.explanation import Explanation, PathNode
from kgrank.serving.path_quality import PathQuality
from kgrank.serving.paths import Chosen, FoundPaths, PathFinder
from kgrank.serving.recommender import Recommender

LISTED = 10  # products of a list whose paths are judged
DRAWS = 5  # random removals a pair
CHANGED = 0.01  # of the edges, for stability

Doubles = npt.NDArray[np.float64]


def measure_explanations(
    bundle: Bundle,
    *,
    sample: int = 200,
    max_paths: int = 3,
    seed: int = 0,
    refits: Sequence[Bundle] = (),
    progress: Progress = silent,
) -> dict[str, Any]:
    """How faithful, complete, stable and varied the explanations of a bundle are.

    Args:
        bundle: what explains.
        sample: users that are drawn, of those with a history; all where they are fewer.
        max_paths: paths shown for each product.
        seed: of all that is drawn.
        refits: the same tables fitted with other seeds (`kgrank.serving.evaluating.refitted`).
        progress: told ("explanations", users done, users).

    Returns:
        `users`, `max_paths`, `with_path` (part of the ten best products that have one), `drop` and
        `drop_beyond_user` ({`pairs`, `shown`, `random`, `difference`, `interval`, `beyond_noise`}),
        `covered` ({`shown`, `together`, `all`}), `stability`, `stability_seeds` ({`refits`,
        `paths`, `edges`}; None without `refits`), `edges` (mean of a path), `lir`, `sep`, `etd`;
        None where nothing could be measured.

    Raises:
        ConfigError: `sample` or `max_paths` is below 1.
        ModelError: no user has a history.
    """
    for name, value in (("sample", sample), ("paths", max_paths)):
        if value < 1:
            raise ConfigError(f"{name}: found {value}; allowed: 1 or more. Correct it.")
    rng = np.random.default_rng(seed)
    users = np.flatnonzero(np.diff(bundle.histories.starts))
    if not len(users):
        raise ModelError("found no user with a history; allowed: some. Train on events.")
    users = np.sort(rng.choice(users, min(sample, len(users)), replace=False))
    recommender = Recommender(bundle, "cpu")
    trial = _Trial(bundle, recommender.explainer, max_paths)
    changed = Explainer(changed_bundle(bundle, CHANGED, rng), recommender.model)
    others = [Explainer(refit, refit.model) for refit in refits]
    quality = PathQuality(bundle)
    rows: list[dict[str, float]] = []
    judged: list[tuple[int, int]] = []
    ids = [str(id_) for id_ in bundle.users.ids(users)]
    lists = recommender.recommend(ids, n=LISTED).groupby("user_id", sort=False)["item_id"]
    of_user = {str(user): list(map(str, items)) for user, items in lists}
    for done, (user, user_id) in enumerate(zip(users.tolist(), ids, strict=True)):
        progress("explanations", done, len(users))
        item_ids = of_user.get(user_id, [])
        whys = list(recommender.explainer.explain(user_id, item_ids, max_paths=max_paths))
        best = [why.paths[0] for why in whys if why.paths]
        row = {"with_path": float(len(best)), "listed": float(len(whys))}
        if best:
            row |= quality.of(user, best)
        if whys and whys[0].paths:
            row |= _covered(whys[0])
            again = next(changed.explain(user_id, item_ids[:1], max_paths=max_paths))
            row["stability"] = _overlap(_paths(whys[0]), _paths(again))
            for_others = [
                next(other.explain(user_id, item_ids[:1], max_paths=max_paths)) for other in others
            ]
            for name, shown in (("paths", _paths), ("edges", _edges)):
                found = [_overlap(shown(whys[0]), shown(why)) for why in for_others]
                row |= {f"seeds_{name}": float(np.mean(found))} if found else {}
            row |= trial.drops(user, whys[0], rng)
            judged.append((len(rows), user))
        rows.append(row)
    progress("explanations", len(users), len(users))
    table = pd.DataFrame(rows)
    kept = table.iloc[[number for number, _ in judged]]
    of = np.array([user for _, user in judged])

    def mean(name: str) -> float | None:
        return float(table[name].mean()) if name in table and table[name].notna().any() else None

    return {
        "users": len(users),
        "max_paths": max_paths,
        "with_path": float(table["with_path"].sum() / max(1.0, table["listed"].sum())),
        "drop": _drop(kept, of, "all"),
        "drop_beyond_user": _drop(kept, of, "beyond"),
        "covered": {name: mean(f"covered_{name}") for name in ("shown", "together", "all")},
        "stability": mean("stability"),
        "stability_seeds": {
            "refits": len(refits),
            **{name: mean(f"seeds_{name}") for name in ("paths", "edges")},
        }
        if refits
        else None,
        **{name: mean(name) for name in ("edges", "lir", "sep", "etd")},
    }


def _drop(rows: pd.DataFrame, users: npt.NDArray[np.integer], which: str) -> dict[str, Any] | None:
    if not len(rows):
        return None
    shown, random = (rows[f"{which}_{name}"].to_numpy() for name in ("shown", "random"))
    found = paired_bootstrap(shown, random, users)
    return {
        "pairs": len(rows),
        "shown": float(shown.mean()),
        "random": float(random.mean()),
        "difference": found.mean,
        "interval": [found.low, found.high],
        "beyond_noise": found.beyond_noise,
    }


def _covered(why: Explanation) -> dict[str, float]:
    personal = sum(why.contributions.values())
    if personal <= 0.0:
        return {}
    of_all = sum(rest.paths for rest in why.remainder.values())
    return {
        "covered_shown": sum(path.contribution for path in why.paths) / personal,
        "covered_together": sum(path.together for path in why.paths) / personal,
        "covered_all": of_all / personal,
    }


def _overlap(one: Set[Any], other: Set[Any]) -> float:
    """Jaccard's index."""
    return len(one & other) / max(1, len(one | other))


def _paths(why: Explanation) -> set[Any]:
    """The shown paths by their nodes; other users count as one."""
    return {tuple(map(_node, path.nodes)) for path in why.paths}


def _edges(why: Explanation) -> set[Any]:
    """The edges of the shown paths; other users count as one."""
    return {
        (edge.relation, *sorted((_node(first), _node(second))))
        for path in why.paths
        for edge, first, second in zip(path.edges, path.nodes[:-1], path.nodes[1:], strict=True)
    }


def _node(node: PathNode) -> tuple[str, str]:
    return ("user", "") if node.type == "user" else (node.type, node.id)


def changed_bundle(bundle: Bundle, part: float, rng: np.random.Generator) -> Bundle:
    """The bundle without a random part of its events and of the graph channel's entries.

    Weights, vectors and the graph stay: what changes is the rows that weights are split over, the
    histories, and the features of the graph channel.
    """
    events = bundle.events[rng.random(len(bundle.events)) >= part].reset_index(drop=True)
    channels = []
    for channel in bundle.model.channels:
        form = channel.form
        if channel.name == "graph" and isinstance(form, SparseFeatures):
            values = form.values.copy()
            values.data[rng.random(values.nnz) < part] = 0.0
            values.eliminate_zeros()
            channel = replace(channel, form=SparseFeatures(sp.csr_matrix(unit_rows(values))))
        channels.append(channel)
    model = replace(bundle.model, channels=tuple(channels))
    return replace(bundle, events=events, model=model)


class _Edges(NamedTuple):
    """A product of the history, the nodes tied to it, and those tied to the item."""

    product: int
    near: list[int]
    far: list[int]


@dataclass(frozen=True, eq=False)
class _Trial:
    """Removes edges and scores again."""

    bundle: Bundle
    explainer: Explainer
    max_paths: int

    def drops(self, user: int, why: Explanation, rng: np.random.Generator) -> dict[str, float]:
        """How far the score falls without the shown paths' edges, and without random ones."""
        bundle = self.bundle
        item = int(bundle.items.numbers([why.item_id])[0])
        parts, found, chosen = self._found(user, item)
        edges = self._edges(found, chosen)
        moved = abs(parts.bias) + float(np.abs(parts.parts.sum(axis=1)).sum())
        base = self._rescorer.score(bundle.histories, user, item, "new", Removed())

        def fall(without: Removed) -> float:
            after = self._rescorer.score(bundle.histories, user, item, "new", without)
            return (base - after) / max(moved, 1e-12)

        drops = {}
        for name, with_events in (("all", True), ("beyond", False)):
            drops[f"{name}_shown"] = fall(self._removed(edges, item, with_events))
            drawn = [
                fall(self._removed(self._drawn(user, item, edges, rng), item, with_events))
                for _ in range(DRAWS)
            ]
            drops[f"{name}_random"] = float(np.mean(drawn))
        return drops

    def _found(self, user: int, item: int) -> tuple[EventParts, FoundPaths, list[Chosen]]:
        model, histories = self.explainer.model, self.bundle.histories
        folded = model.folded(histories, histories.of_users(np.array([user])), "new")
        parts = model.parts_of(folded, item, "new")
        finder = self.explainer.paths
        found = finder.find(parts, folded, item, user)
        return parts, found, finder.choose(found, self.max_paths)

    def _edges(self, found: FoundPaths, chosen: Sequence[Chosen]) -> list[_Edges]:
        """The edges of the shown paths and of those that they stand for."""
        return [
            _Edges(int(found.items[path]), middles, middles)
            for path, middles in (
                (path, found.middles[[path, *others]].tolist()) for path, others in chosen
            )
        ]

    def _drawn(
        self,
        user: int,
        item: int,
        edges: Sequence[_Edges],
        rng: np.random.Generator,
    ) -> list[_Edges]:
        """As many random edges: at random products of the history, and at the item."""
        histories = self.bundle.histories
        met = np.unique(histories.items[histories.starts[user] : histories.starts[user + 1]])
        products = rng.choice(met, min(len(edges), len(met)), replace=False).tolist()
        drawn = []
        for product, (_, near, far) in zip(products, edges, strict=False):
            ends = []
            for of, n in ((product, len(near)), (item, len(far))):
                others = self._neighbors(of)
                others = others[others != self._user_node(user)]
                ends.append(rng.choice(others, min(n, len(others)), replace=False).tolist())
            drawn.append(_Edges(product, ends[0], ends[1]))
        return drawn

    def _neighbors(self, item: int) -> npt.NDArray[np.int64]:
        """The nodes that an item's edges lead to: users, and what its facts name."""
        facts = self.bundle.item_entities
        row = facts.matrix.indices[facts.matrix.indptr[item] : facts.matrix.indptr[item + 1]]
        users = self._met_by.indices[self._met_by.indptr[item] : self._met_by.indptr[item + 1]]
        nodes = self.explainer.paths.user_nodes[users]
        return np.concatenate([facts.columns[row].astype(np.int64), nodes[nodes >= 0]])

    def _removed(self, edges: Sequence[_Edges], item: int, with_events: bool) -> Removed:
        own = frozenset(product for product, _, _ in edges) if with_events else frozenset[int]()
        others: dict[int, set[int]] = {}
        facts: set[tuple[int, int]] = set()
        types = self.bundle.graph.nodes.types
        for product, near, far in edges:
            for of, middles in ((product, near), (item, far)):
                for middle in middles:
                    if types[middle] == USER:
                        others.setdefault(self._user_of[middle], set()).add(of)
                    else:
                        facts |= self._fact(of, middle)
        frozen = {user: frozenset(items) for user, items in others.items()}
        return Removed(own, frozen, frozenset(facts))

    def _fact(self, item: int, node: int) -> set[tuple[int, int]]:
        """What ties an item to a node; a fact between two items is known of both."""
        columns, nodes = self.bundle.item_entities.columns, self.explainer.paths.item_nodes
        ends = [(item, node)]
        if (other := self._item_of.get(node)) is not None:
            ends.append((other, int(nodes[item])))
        places = [(of, int(np.searchsorted(columns, end))) for of, end in ends]
        return {
            (of, place)
            for (of, place), (_, end) in zip(places, ends, strict=True)
            if place < len(columns) and columns[place] == end
        }

    @cached_property
    def _item_of(self) -> Mapping[int, int]:
        nodes = self.explainer.paths.item_nodes.tolist()
        return {node: item for item, node in enumerate(nodes) if node >= 0}

    def _user_node(self, user: int) -> int:
        return int(self.explainer.paths.user_nodes[user])

    @cached_property
    def _user_of(self) -> Mapping[int, int]:
        nodes = self.explainer.paths.user_nodes.tolist()
        return {node: user for user, node in enumerate(nodes) if node >= 0}

    @cached_property
    def _met_by(self) -> sp.csc_matrix:
        return self.bundle.histories.binary().tocsc()

    @cached_property
    def _rescorer(self) -> Rescorer:
        return rescorer(self.bundle, self.explainer.paths)


def rescorer(bundle: Bundle, finder: PathFinder) -> Rescorer:
    """What scores as if some edges were not there."""
    ridges: dict[str, tuple[Ridge, Steps | None]] = {}
    learned: dict[str, LightParts] = {}
    for channel in bundle.model.channels:
        choice = bundle.facts.get("choices", {}).get(channel.name) or {}
        if choice.get("ridge"):
            ridges[channel.name] = Ridge(**choice["ridge"]), Steps.of_choice(choice)
        form = channel.form
        if isinstance(form, DenseFeatures) and (parts := finder.fact_parts(form)) is not None:
            steps = form.entities.steps if form.entities else None
            histories = finder.evidence.histories
            if steps is not None and len(histories.by_kind()) != steps.weights.shape[1]:
                steps = None  # kinds of events that came later, which it has not walked
            learned[channel.name] = LightParts(*parts, steps, histories)
    return Rescorer(bundle.model, finder.evidence, ridges, learned)
