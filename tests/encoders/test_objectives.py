"""What an encoder is fine-tuned for: moments, the softmax of what comes next, products drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from kgrank.encoders.examples import Catalogue, Moments, moments, sentiments
from kgrank.encoders.next_product import HistoryRule, NextProduct
from kgrank.encoders.objectives import Batch, Mixture
from kgrank.encoders.pairs import PairHead, Pairs
from kgrank.encoders.text import TextEncoder
from kgrank.encoders.tuned import TunedText


def test_moments_are_what_was_met_before_the_first_event_on_a_product() -> None:
    """u: a b a c | d; w: b | c. Title-less d says nothing; a comes again, which is no target."""
    items = pd.DataFrame({"item_id": list("abcd"), "title": ["A", "B", "A", ""]})
    rows = [*((("u", item, "train")) for item in "abac"), ("w", "b", "train")]
    rows += [("u", "d", "valid"), ("w", "c", "valid"), ("w", "a", "test")]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "split"]).assign(event="view")
    catalogue = Catalogue.of(items["title"].tolist())
    assert catalogue.texts == ("A", "B")
    assert catalogue.of_item.tolist() == [0, 1, 0, -1]
    train = moments(events, items, catalogue, "train")
    assert train.targets.tolist() == [1, 2]  # b after a; c after a b a
    assert train.met[:, :4].tolist() == [[0, -1, -1, -1], [0, 1, 0, -1]]
    valid = moments(events, items, catalogue, "valid")
    assert (valid.targets.tolist(), valid.met[0, :2].tolist()) == ([2], [1, -1])
    assert len(moments(events, items, catalogue, "train", {"click"})) == 0


@pytest.fixture
def model(tiny_folder: Path) -> TunedText:
    """Four texts of the tiny encoder, with a table that was filled."""
    encoder = TextEncoder.load(tiny_folder, device="cpu")
    found = TunedText(encoder, ["red", "blue", "usb cable", "lamp"], 4, method="full")
    found.refresh()
    return found


def _moments() -> Moments:
    met = np.full((3, 50), -1)
    met[0, :2], met[1, 0], met[2, :3] = [1, 0], 3, [0, 1, 1]
    return Moments(met, np.array([2, 0, 3]), np.arange(3))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_loss_is_a_softmax_over_what_was_not_met(model: TunedText, alpha: float) -> None:
    """Candidates are the products that came: 2, 0 and 3, each a third."""
    catalogue = Catalogue(model.texts, np.arange(4))
    rule = HistoryRule(window=3, power=1.0)
    objective = NextProduct(
        model,
        catalogue,
        _moments(),
        _moments(),
        rule,
        temperature=0.5,
        popularity=alpha,
        encoded=2,
        most_rows=10,
        shrinkage=1.0,
        seed=0,
    )
    v = model.table.clone().double().numpy()
    expected = 0.0
    for history, weights, target, others in (
        ([1, 0], [1, 1 / 2], 2, [2, 3]),
        ([3], [1], 0, [2, 0]),
        ([0, 1, 1], [1, 1 / 2, 1 / 3], 3, [2, 3]),
    ):
        user = np.array(weights) @ v[history]
        scores = {i: v[i] @ user / np.linalg.norm(user) / 0.5 for i in others}
        expected += np.log(sum(map(np.exp, scores.values()))) - scores[target]
    thirds = np.full(3, 1 / 3, np.float32)
    batch = Batch(np.arange(3), thirds, np.array([1, 2]), (0,))
    whole = objective.loss(batch, slice(None))
    assert float(whole.detach()) == pytest.approx(expected / 3, abs=1e-5)
    parts = [float(objective.loss(batch, slice(n, None, 2)).detach()) for n in (0, 1)]
    assert sum(parts) == pytest.approx(float(whole.detach()), abs=1e-5)
    whole.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert max(float(g.abs().max()) for g in gradients) > 0


def test_each_text_is_encoded_once_an_epoch_with_the_moments_it_stands_in(
    model: TunedText,
) -> None:
    catalogue = Catalogue(model.texts, np.arange(4))
    objective = NextProduct(
        model,
        catalogue,
        _moments(),
        _moments(),
        HistoryRule(),
        temperature=0.1,
        popularity=0.0,
        encoded=1,
        most_rows=10,
        shrinkage=1.0,
        seed=0,
    )
    batches = objective.batches((0, 0))
    inside = {0: {0, 1, 2}, 1: {0, 2}, 2: {0}, 3: {1, 2}}
    assert {int(batch.fresh[0]) for batch in batches} == set(inside)
    for batch in batches:
        touched = inside[int(batch.fresh[0])]
        assert set(batch.rows[: len(touched)]) == touched
        assert set(batch.rows) == {0, 1, 2}
        assert_allclose(batch.weights, 1 / 3)
    drawn = [[batch.rows.tolist() for batch in objective.batches((0, n))] for n in (0, 0)]
    assert drawn[0] == drawn[1]
    objective.examples.most_rows = 2  # of three moments: one of two with blue, and the other
    [blue] = [batch for batch in objective.batches((0, 0)) if batch.fresh == [1]]
    assert blue.rows[0] in {0, 2} and blue.rows[1] == 1
    assert_allclose(blue.weights, [2 / 3, 1 / 3], atol=1e-6)


def test_products_drawn_beside_a_purchase_are_none_the_user_met(model: TunedText) -> None:
    """Each that came in train is drawn as often as the others; met ones do not count."""
    catalogue = Catalogue(model.texts, np.arange(4))
    pairs = Pairs(
        model,
        PairHead(model.dim, 200),
        catalogue,
        _moments(),
        _moments(),
        HistoryRule(),
        negatives=200,
        encoded=2,
        most_rows=10,
        seed=0,
    )
    counted = [
        set(row[real]) for row, real in zip(pairs.valid_pairs, pairs.valid_real, strict=True)
    ]
    assert counted == [{2, 3}, {0, 2}, {3, 2}]
    assert pairs.valid_pairs[:, 0].tolist() == [2, 0, 3]
    assert 0.5 < pairs.valid_real[:, 1:].mean(axis=1)[1] + 1 / 3 < 0.8
    assert set(pairs.figures()) == {"auc", "log_loss"}


class Few:
    """An objective of some batches, of which nothing is asked but these."""

    def __init__(self, n_batches: int) -> None:
        self.n_batches = n_batches

    def batches(self, seed: tuple[int, ...]) -> list[Batch]:
        return [Batch.whole(np.array([n]), (*seed, n)) for n in range(self.n_batches)]

    def loss(self, batch: Batch, share: slice) -> torch.Tensor:
        raise AssertionError("only batches are asked for")

    def figures(self) -> dict[str, float]:
        return {}

    def score(self, figures: Mapping[str, float]) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ({"next": 1.0, "rating": 0.5}, {"next": 12, "rating": 6}),  # 4 batches of rating come again
        ({"next": 1.0, "rating": 1.0}, {"next": 12, "rating": 12}),  # the most batches
        ({"next": 0.5, "rating": 1.0}, {"next": 2, "rating": 4}),
        ({"next": 1e-6, "rating": 1.0}, {"next": 1, "rating": 4}),
        ({"next": 1e300, "rating": 1e-300}, {"next": 12, "rating": 1}),
    ],
)
def test_an_epoch_is_a_pass_over_what_weighs_most_in_any_order(
    model: TunedText, weights: dict[str, float], counts: dict[str, int]
) -> None:
    of = {"next": Few(12), "rating": Few(4)}
    for names in (["next", "rating"], ["rating", "next"]):
        objectives = {name: (weights[name], of[name]) for name in names}
        mixture = Mixture(model, objectives, nn.ModuleDict(), 0)
        assert Counter(name for name, _ in mixture.batches(0)) == counts


def test_a_sentiment_is_a_column_or_the_side_of_the_middle() -> None:
    events = pd.DataFrame(
        {"event": ["rating"] * 4 + ["view"], "value": [1.0, 3.0, 3.5, np.nan, 5.0]}
    )
    labels, names = sentiments(events, None, ("rating",), (1.0, 5.0))
    assert_allclose(labels, [0, 1, 2, np.nan, np.nan])
    assert names == ("negative", "neutral", "positive")
    events["mood"] = ["sad", "glad", "", "sad", "glad"]
    labels, names = sentiments(events, "mood", ("rating",), (1.0, 5.0))
    assert_allclose(labels, [1, 0, np.nan, 1, 0])
    assert names == ("glad", "sad")
