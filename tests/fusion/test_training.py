"""A fit chooses on valid what the world was made of."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import scipy.sparse as sp

from kgrank.errors import ModelError
from kgrank.fusion import selection
from kgrank.fusion.channels import ItemItem
from kgrank.fusion.evidence import ItemFeatures, item_side, numbered
from kgrank.fusion.history import Histories
from kgrank.fusion.lists import top_n
from kgrank.fusion.model import Head, exclude
from kgrank.fusion.queries import Queries, all_allowed, next_queries, user_queries
from kgrank.fusion.settings import FitSettings
from kgrank.fusion.training import Fit, fit, valid_queries
from kgrank.kg.vocabulary import Vocabulary

REFIT = FitSettings()
TRAIN_ONLY = FitSettings(refit=False)


@dataclass(frozen=True)
class World:
    """Events as numbers; item iN has the number N."""

    histories: Histories
    splits: npt.NDArray[np.int8]

    @classmethod
    def of(cls, events: pd.DataFrame) -> "World":
        n_items = 1 + events["item_id"].str.removeprefix("i").astype(int).max()
        items = Vocabulary.from_ids([f"i{n}" for n in range(n_items)])
        users = Vocabulary.from_ids(events["user_id"].unique())
        return cls(*numbered(events, users, items))

    @property
    def train(self) -> Histories:
        return self.histories.where(self.splits == 0)

    def fitted(self, settings: FitSettings = TRAIN_ONLY, words: sp.csr_matrix | None = None) -> Fit:
        nothing = sp.csr_matrix((self.histories.n_items, 1), dtype=np.float32)
        features = ItemFeatures(nothing if words is None else words, nothing, None)
        return fit(self.histories, self.splits, features, settings, lambda *_: None)


def best(found: Fit, queries: Queries, head: Head = "new", n: int = 1) -> npt.NDArray[np.int64]:
    """The n best items of each query."""
    scores = found.model.scores(queries.histories, queries.spans, head)
    return np.asarray(top_n(exclude(scores, queries.excluded), n)[0])


def test_even_users_are_shown_even_items(even_events: pd.DataFrame) -> None:
    """Six of ten items are left to each user: the two of valid are on their own side."""
    world = World.of(even_events)
    found = world.fitted()
    users = np.arange(world.histories.n_users)
    queries = user_queries(world.train, world.histories.where(world.splits == 1), world.train)
    assert queries.users.tolist() == users.tolist()
    assert (best(found, queries, n=6) % 2 == users[:, None] % 2).mean() > 0.99
    assert set(found.choices) == {"linear", "directed"}
    assert [channel.name for channel in found.model.channels] == ["linear", "directed"]


def test_words_make_a_channel_and_reach_what_nobody_has_bought(even_events: pd.DataFrame) -> None:
    """Items i18 and i19 lose their events; their word is that of their side."""
    world = World.of(even_events)
    kept = world.histories.items < 18
    world = World(world.histories.where(kept), world.splits[kept])
    words = sp.csr_matrix(np.eye(2, dtype=np.float32)[np.arange(20) % 2])
    found = world.fitted(words=words)
    assert set(found.choices) == {"linear", "directed", "text"}
    spans = world.train.of_users(np.arange(60))
    scores = found.model.scores(world.train, spans, "new").numpy()
    even = np.arange(60) % 2 == 0
    assert (scores[even, 18] > scores[even, 19]).all()
    assert (scores[~even, 19] > scores[~even, 18]).all()


def test_where_order_says_all_the_next_item_comes_first(step_events: pd.DataFrame) -> None:
    world = World.of(step_events)
    found = world.fitted()
    queries = next_queries(world.histories, np.flatnonzero(world.splits == 1))
    right = queries.relevant.indices == best(found, queries)[:, 0]
    assert right.mean() > 0.95
    assert found.choices["directed"].ndcg > 0.95
    assert found.choices["linear"].ndcg < 0.95


def test_lists_of_all_products_show_again_what_is_bought_again(repeat_events: pd.DataFrame) -> None:
    """A user's own four items come first among all; lists of new ones need no such channel."""
    world = World.of(repeat_events)
    found = world.fitted()
    assert set(found.fused) == {"new", "all"}
    names = [channel.name for channel in found.model.channels]
    repeat = names.index("repeat")
    assert found.model.heads["all"].weight[repeat] > 0.0
    assert found.model.heads["new"].weight[repeat] == 0.0
    assert len(found.model.heads["new"].weight) == len(names)
    queries = all_allowed(user_queries(world.train, world.train, world.train))
    top, own = best(found, queries, "all", n=4), queries.relevant.indices.reshape(-1, 4)
    listed = [np.isin(mine, first).mean() for mine, first in zip(own, top, strict=True)]
    assert np.mean(listed) > 0.95


def test_directed_weights_reach_ahead_where_that_ranks_better(
    repeat_events: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = World.of(repeat_events).fitted().choices["directed"]
    monkeypatch.setattr(selection, "REACHES", (1,))
    near = World.of(repeat_events).fitted().choices["directed"]
    assert far.steps is not None
    assert far.steps.reach > 1
    assert far.ndcg > near.ndcg + 0.01


def test_without_repeats_lists_of_all_products_are_lists_of_new_ones(
    even_events: pd.DataFrame,
) -> None:
    found = World.of(even_events).fitted()
    assert set(found.fused) == {"new"}
    assert found.model.heads["all"] is found.model.heads["new"]


def test_the_same_seed_gives_the_same_model(repeat_events: pd.DataFrame) -> None:
    """To the bit."""
    one, two = (World.of(repeat_events).fitted(REFIT) for _ in range(2))
    assert one.choices == two.choices
    for head in one.model.heads:
        first, second = (found.model.heads[head].vector() for found in (one, two))
        assert first.tobytes() == second.tobytes()
    for mine, other in zip(one.model.channels, two.model.channels, strict=True):
        assert isinstance(mine.form, ItemItem)
        assert isinstance(other.form, ItemItem)
        assert mine.form.weights.data.tobytes() == other.form.weights.data.tobytes()
        assert mine.form.weights.indices.tobytes() == other.form.weights.indices.tobytes()


def test_refitting_keeps_what_was_chosen_and_sees_the_valid_events_too(
    repeat_events: pd.DataFrame,
) -> None:
    world = World.of(repeat_events)
    alone, both = world.fitted(TRAIN_ONLY), world.fitted(REFIT)
    assert alone.choices == both.choices
    assert alone.model.heads["all"].vector().tolist() == both.model.heads["all"].vector().tolist()
    for found, seen in ((alone, world.train), (both, world.histories)):
        side = item_side(seen)
        assert found.model.side.popularity.tolist() == side.popularity.tolist()
    names = [channel.name for channel in both.model.channels]
    assert names == [channel.name for channel in alone.model.channels]
    for name, before, after in zip(names, alone.model.channels, both.model.channels, strict=True):
        assert isinstance(before.form, ItemItem)
        assert isinstance(after.form, ItemItem)
        changed = (before.form.weights != after.form.weights).nnz > 0
        assert changed == (name != "repeat")


def test_what_cannot_be_fitted_is_refused(even_events: pd.DataFrame) -> None:
    every = World.of(even_events).histories
    splits = np.zeros(len(every.items), np.int8)
    with pytest.raises(ModelError, match="found no train events"):
        World(every, splits + np.int8(1)).fitted()
    with pytest.raises(ModelError, match="found no valid events"):
        World(every, splits).fitted()


def test_valid_events_of_users_without_a_history_ask_nothing() -> None:
    """User a has train events alone, user b valid ones alone."""
    events = pd.DataFrame(
        {
            "user_id": ["a", "a", "b"],
            "item_id": ["i0", "i1", "i0"],
            "event": "buy",
            "split": ["train", "train", "valid"],
        }
    )
    with pytest.raises(ModelError, match="of users with a history"):
        World.of(events).fitted()


def asked(splits: list[int], settings: FitSettings) -> list[int]:
    """How many events the history of each query holds; two users with the same splits."""
    length = len(splits)
    every = Histories.from_arrays(
        np.repeat([0, 1], length),
        np.arange(2 * length),
        np.zeros(2 * length, int),
        np.full(2 * length, np.nan),
        kind_names=("buy",),
        n_users=2,
        n_items=2 * length,
    )
    queries = valid_queries(every, np.tile(np.array(splits, np.int8), 2), settings)
    found: list[int] = (queries.spans.last - queries.spans.first).tolist()
    return found


def test_a_split_by_time_is_asked_at_moments() -> None:
    """After four events, and after five."""
    assert asked([0, 0, 0, 0, 1, 1], FitSettings()) == [4, 5, 4, 5]


def test_a_split_at_random_is_asked_by_user() -> None:
    """Valid rows stand before train rows: the four train rows are the history."""
    assert asked([1, 0, 1, 0, 0, 0], FitSettings()) == [4, 4]


def test_a_protocol_that_is_named_is_used() -> None:
    assert asked([0, 0, 0, 0, 1, 1], FitSettings(protocol="user")) == [4, 4]
    assert asked([0, 1, 0, 1, 0, 0], FitSettings(protocol="later")) == [1, 3, 1, 3]


def test_a_user_is_asked_at_four_moments_at_most() -> None:
    """Eight valid events: every second one."""
    assert asked([0, 0] + [1] * 8, FitSettings()) == [2, 4, 6, 8] * 2


def test_valid_queries_by_user_know_the_train_rows_alone(even_events: pd.DataFrame) -> None:
    world = World.of(even_events)
    queries = valid_queries(world.histories, world.splits, FitSettings(protocol="user"))
    assert len(queries.histories.items) == len(world.train.items) == 60 * 4
    assert np.diff(queries.relevant.indptr).tolist() == [2] * 60
    assert queries.excluded.nnz == 60 * 4
    assert not queries.relevant.multiply(queries.excluded).nnz


def test_progress_is_told_to_its_end(step_events: pd.DataFrame) -> None:
    world = World.of(step_events)
    told: list[tuple[str, int, int]] = []
    nothing = sp.csr_matrix((20, 1), dtype=np.float32)
    fit(
        world.histories,
        world.splits,
        ItemFeatures(nothing, nothing, None),
        TRAIN_ONLY,
        lambda stage, done, total: told.append((stage, done, total)),
    )
    for stage in ("choosing settings", "fitting channels", "fusion"):
        steps = [(done, total) for name, done, total in told if name == stage]
        assert steps[0][0] == 0
        assert steps[-1][0] == steps[-1][1]
