"""What is measured of reasons, by hand where it is arithmetic, and on the sample shop."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from kgrank.errors import ConfigError
from kgrank.fusion.removal import Removed
from kgrank.kg.tables import Tables
from kgrank.serving.bundle import Bundle
from kgrank.serving.cli import app
from kgrank.serving.evaluating import refitted
from kgrank.serving.explanation import Explanation, Path, PathEdge, PathNode
from kgrank.serving.faithfulness import (
    _edges,
    _overlap,
    _paths,
    _Trial,
    changed_bundle,
    measure_explanations,
    rescorer,
)
from kgrank.serving.path_quality import PathQuality, smoothed
from kgrank.serving.recommender import Recommender

TIED = "compatible_with"  # what ties two products of the sample shop


def test_smoothing_by_hand() -> None:
    """`ewm(span=3)`: α = 1/2, weights 1, 1/2, 1/4 … from the newest.

    1; (3 + 1/2) / (3/2) = 7/3; (9 + 3/2 + 1/4) / (7/4) = 43/7. From 0 to 1: 0, (7/3 − 1) / (43/7 −
    1) = 7/27, 1. As hopwise's `normalized_ema([1, 3, 9])`.
    """
    assert smoothed(np.array([1.0, 3.0, 9.0])) == pytest.approx([0.0, 7 / 27, 1.0])
    assert smoothed(np.array([5.0, 5.0])) == pytest.approx([0.0, 1.0])  # their order
    assert smoothed(np.array([5.0])) == pytest.approx([0.0])


def a_path(user: str, product: str, entity: PathNode, item: str, relation: str) -> Path:
    nodes = PathNode(user, "user", user), PathNode(product, "item", ""), entity
    edges = PathEdge("purchase", user, product), PathEdge(relation, product, entity.id)
    last = PathEdge(relation, item, entity.id)
    return Path((*nodes, PathNode(item, "item", "")), (*edges, last), 0.5)


def test_quality_by_hand(tiny_bundle: Bundle) -> None:
    """u-ivy met a2 alone, so it is not recent; u-dot met a1, a5 and a2, a2 and then a1 last.

    u-dot: a5 on day 7, a2 on 33, a1 on 35. Span 3 of three values: 7, (33 + 7/2) / (3/2) = 73/3,
    (35 + 33/2 + 7/4) / (7/4) = 213/7; a2 = (73/3 − 7) / (213/7 − 7) = 91/123.
    Materials: steel 3 edges, wool 2; brands: Alder 6 items, Birch 6: two of the same, by order.
    """
    quality = PathQuality(tiny_bundle)
    user = int(tiny_bundle.users.numbers(["u-dot"])[0])
    steel, wool = PathNode("steel", "material", "Steel"), PathNode("wool", "material", "Wool")
    paths = [
        a_path("u-dot", "a2", steel, "b2", "made_of"),
        a_path("u-dot", "a1", steel, "b2", "made_of"),
        a_path("u-dot", "a5", wool, "b1", "made_of"),
    ]
    found = quality.of(user, paths)
    assert found["lir"] == pytest.approx((91 / 123 + 1.0 + 0.0) / 3)
    assert found["sep"] == pytest.approx((1.0 + 1.0 + 0.0) / 3)
    assert found["edges"] == 3.0
    assert found["etd"] == pytest.approx(1 / 3)  # one relation, three paths, three relations
    alone = int(tiny_bundle.users.numbers(["u-ivy"])[0])
    assert quality.of(alone, [a_path("u-ivy", "a2", steel, "a1", "made_of")])["lir"] == 0.0


def test_quality_is_that_of_hopwise(tiny_bundle: Bundle) -> None:
    """What `LIR`, `SEP` and `PTD` of hopwise 0.9.1 (hopwise/evaluator/metrics.py) give of these.

    Its classes were run on these paths, with the newest time of each product, the degree of each
    node by type and the names of the relations; ETD is PTD there. hopwise cannot be installed
    beside kgrank (it wants protobuf 3.20). By hand: u-dot's history as above; users have 1, six
    times 4 and twice 5 edges, span 9, α = 1/5, so u-ada, who comes after u-ivy, has (4 + 0.8) / 1.8
    = 8/3, and u-eva, the last, (1·0.8⁸ + 4·(0.8² + … + 0.8⁷) + 5·1.8) / (1 + … + 0.8⁸) = 4.2995:
    (8/3 − 1) / 3.2995 = 0.50512 of it.
    """
    quality = PathQuality(tiny_bundle)
    user = int(tiny_bundle.users.numbers(["u-dot"])[0])
    steel, wool = PathNode("steel", "material", "Steel"), PathNode("wool", "material", "Wool")
    paths = [
        a_path("u-dot", "a2", steel, "b2", "made_of"),
        a_path("u-dot", "a1", steel, "b2", "made_of"),
        a_path("u-dot", "a5", wool, "b1", "made_of"),
        a_path("u-dot", "a5", PathNode("brand:Alder", "brand", "Alder"), "c1", "brand"),
    ]
    found = quality.of(user, paths)
    theirs = {"lir": 0.43495935, "sep": 0.5, "etd": 0.666666667}
    assert {name: found[name] for name in theirs} == pytest.approx(theirs, rel=1e-6)
    for other, popularity in {"u-ivy": 0.0, "u-ada": 0.505120866, "u-eva": 1.0}.items():
        shared = PathNode(other, "user", other)
        found = quality.of(user, [a_path("u-dot", "a2", shared, "a3", "purchase")])
        theirs = {"lir": 0.73983747, "sep": popularity, "etd": 1.0}
        assert {name: found[name] for name in theirs} == pytest.approx(theirs, rel=1e-6)


def test_a_changed_bundle_is_without_a_part_of_its_events_and_features(
    shop_bundle: Bundle,
) -> None:
    changed = changed_bundle(shop_bundle, 0.2, np.random.default_rng(0))
    assert 0.75 < len(changed.events) / len(shop_bundle.events) < 0.85
    before, after = (
        next(c.form.values for c in of.model.channels if c.name == "graph")
        for of in (shop_bundle, changed)
    )
    assert 0.7 < after.nnz / before.nnz < 0.9
    lengths = np.sqrt(np.asarray(after.multiply(after).sum(axis=1)).ravel())
    assert lengths[lengths > 0] == pytest.approx(1.0, rel=1e-5)


def test_nothing_removed_is_the_score_of_every_channel(even: Recommender) -> None:
    bundle = replace(even.bundle, model=even.model)
    scorer = rescorer(bundle, even.explainer.paths)
    for user, item in (("u-ada", "tarn-bottle"), ("0003", "alta-tent")):
        numbers = int(bundle.users.numbers([user])[0]), int(bundle.items.numbers([item])[0])
        found = scorer.score(bundle.histories, *numbers, "new", Removed())
        assert found == pytest.approx(even.explain(user, item, repeats="exclude").score, rel=1e-5)


def test_a_fact_between_two_products_is_removed_from_both(even: Recommender) -> None:
    bundle, nodes = even.bundle, even.explainer.paths.item_nodes
    trial = _Trial(bundle, even.explainer, 1)
    edges = bundle.graph.edge_list()
    number = int(np.flatnonzero(edges.relations == bundle.graph.relations.index(TIED))[0])
    one, other = (
        int(np.flatnonzero(nodes == end)[0]) for end in (edges.heads[number], edges.tails[number])
    )
    found = trial._fact(one, int(nodes[other]))
    assert found == trial._fact(other, int(nodes[one]))
    assert {item for item, _ in found} == {one, other}
    known = bundle.item_entities
    assert all(known.matrix[item, column] > 0 for item, column in found)
    assert {int(known.columns[column]) for _, column in found} == {nodes[one], nodes[other]}
    brand = bundle.graph.node_number("brand", "brand:Nordfell")
    assert len(trial._fact(one, brand)) == 1


@pytest.fixture(scope="session")
def measured(even: Recommender) -> dict[str, Any]:
    return measure_explanations(even.bundle, sample=12, max_paths=1, seed=1)


def test_shown_edges_matter_more_than_random_ones(measured: dict[str, Any]) -> None:
    for name in ("drop", "drop_beyond_user"):
        drop = measured[name]
        assert drop["pairs"] == 12
        low, high = drop["interval"]
        assert low <= drop["difference"] <= high
        assert drop["difference"] == pytest.approx(drop["shown"] - drop["random"], abs=1e-9)
        assert drop["difference"] > 0.0
        assert drop["beyond_noise"] == (low > 0.0)


def test_what_is_covered_is_in_order(measured: dict[str, Any]) -> None:
    covered = measured["covered"]
    assert 0.0 < covered["shown"] < covered["together"] < covered["all"] <= 1.0
    assert measured["with_path"] > 0.9
    assert 0.3 < measured["stability"] <= 1.0
    assert measured["edges"] == 3.0
    for name in ("lir", "sep", "etd"):
        assert 0.0 <= measured[name] <= 1.0
    assert json.loads(json.dumps(measured)) == measured


def test_the_same_seed_measures_the_same(even: Recommender) -> None:
    first, again, other = (
        measure_explanations(even.bundle, sample=2, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_sample_of_nobody_is_refused(shop_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="sample: found 0"):
        measure_explanations(shop_bundle, sample=0)


def why_of(*paths: Path) -> Explanation:
    return Explanation("u", "b2", 1.0, 0.0, {}, (), paths, (), "")


def test_what_two_fits_show_overlaps_by_hand() -> None:
    """Of a–steel and a–wool the other fit shows the first, and a–steel of another product.

    Paths: one of three. Edges: user–a2, a2–steel and steel–b2 are in both; a2–wool and wool–b2 in
    one, user–a1 and a1–steel in the other: three of seven.
    """
    steel, wool = PathNode("steel", "material", "Steel"), PathNode("wool", "material", "Wool")
    first = a_path("u", "a2", steel, "b2", "made_of")
    one = why_of(first, a_path("u", "a2", wool, "b2", "made_of"))
    other = why_of(first, a_path("u", "a1", steel, "b2", "made_of"))
    assert _overlap(_paths(one), _paths(other)) == pytest.approx(1 / 3)
    assert _overlap(_edges(one), _edges(other)) == pytest.approx(3 / 7)


def test_stability_across_seeds_is_that_of_the_refits(
    tiny_bundle: Bundle, tiny_tables: Tables
) -> None:
    """A fit with the same seed shows the same; nothing random is left in this small shop."""
    same = refitted(tiny_bundle, tiny_tables, tiny_bundle.config.learn.seed)
    found = measure_explanations(tiny_bundle, sample=3, refits=[same])
    assert found["stability_seeds"] == {"refits": 1, "paths": 1.0, "edges": 1.0}
    # one that has forgotten two thirds of the events shows other paths
    less = changed_bundle(tiny_bundle, 0.66, np.random.default_rng(3))
    other = measure_explanations(tiny_bundle, sample=3, refits=[same, less])["stability_seeds"]
    assert other["refits"] == 2
    assert 0.5 <= other["paths"] <= other["edges"] < 1.0


def test_seeds_on_the_command_line(tiny_bundle: Bundle, tiny_shop: Any, tmp_path: Any) -> None:
    tiny_bundle.save(tmp_path)
    words = ["evaluate", str(tmp_path), "--explanations", "--sample", "2", "--source"]
    told = CliRunner().invoke(app, [*words, str(tiny_shop), "--seeds", "1", "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["stability_seeds"]["refits"] == 1
    wrong = CliRunner().invoke(app, ["evaluate", str(tmp_path), "--seeds", "1"])
    assert wrong.exit_code == 2
