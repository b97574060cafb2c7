"""What is chosen on valid is what ranks best there."""

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp

from kgrank.fusion import selection
from kgrank.fusion.channels import ItemItem
from kgrank.fusion.evidence import Evidence, ItemFeatures, Steps
from kgrank.fusion.history import DAY, Decay, Histories
from kgrank.fusion.item_item import Ridge
from kgrank.fusion.metrics import list_metrics
from kgrank.fusion.model import exclude
from kgrank.fusion.queries import Queries, next_queries, user_queries
from kgrank.fusion.selection import (
    Trial,
    choose_ease,
    choose_features,
    choose_ridge,
    sub_catalogue,
)

N_ITEMS = 20
SHIFT = ItemItem(  # item i speaks for item i + 1 alone
    sp.csr_matrix(np.roll(np.eye(N_ITEMS, dtype=np.float32), 1, axis=1))
)
INF = float("inf")


def histories(
    rows: npt.NDArray[np.int64],
    kinds: npt.NDArray[np.int64] | None = None,
    days: npt.NDArray[np.float64] | None = None,
) -> Histories:
    """Row u holds the items of user u."""
    n_users, length = rows.shape
    return Histories.from_arrays(
        np.repeat(np.arange(n_users), length),
        rows.ravel(),
        np.zeros(rows.size, int) if kinds is None else kinds.ravel(),
        np.full(rows.size, np.nan) if days is None else days.ravel() * DAY,
        kind_names=("buy", "view"),
        n_users=n_users,
        n_items=N_ITEMS,
    )


def last_of_each(every: Histories) -> Queries:
    """Each user's last event is asked for."""
    return next_queries(every, every.starts[1:] - 1)


def followed(place: int, length: int = 5, n_users: int = 100) -> npt.NDArray[np.int64]:
    """Random items; the last one follows (i + 1) the one at `place`."""
    rng = np.random.default_rng(0)
    rows = np.array([rng.permutation(N_ITEMS)[:length] for _ in range(n_users)])
    rows[:, -1] = (rows[:, place] + 1) % N_ITEMS
    return rows


def test_a_trial_ranks_in_full() -> None:
    queries = last_of_each(histories(followed(2)))
    decay = Decay(power=1.0)
    scores = SHIFT.scores(queries.histories.weights(queries.spans, decay))
    top = exclude(scores, queries.excluded).topk(10, dim=1).indices.numpy()
    expected = list_metrics(top, queries.relevant, (10,)).ndcg[10].mean()
    assert 0.3 < expected < 1.0
    assert Trial(queries).ndcg(SHIFT, decay) == pytest.approx(expected)


def test_a_trial_asks_no_more_than_it_can_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 queries of 4 events over 20 items: 400 cells make 20, 40 events make 10."""
    queries = last_of_each(histories(followed(3)))
    assert len(Trial.of(queries, 0).queries) == 100
    monkeypatch.setattr(selection, "SEARCH_CELLS", 400)
    assert len(Trial.of(queries, 0).queries) == 20
    monkeypatch.setattr(selection, "SEARCH_EVENTS", 40)
    assert len(Trial.of(queries, 0).queries) == 10
    monkeypatch.setattr(selection, "SEARCH_QUERIES", 5)
    assert len(Trial.of(queries, 0).queries) == 5


def test_where_the_last_event_decides_histories_fade_fast() -> None:
    trial = Trial(last_of_each(histories(followed(3))))
    decay, ndcg = trial.best_decay(SHIFT, Decay(power=0.5))
    assert decay.power > 0.0 or decay.span < INF
    assert ndcg == trial.ndcg(SHIFT, decay) > trial.ndcg(SHIFT, Decay()) + 0.1


def test_where_events_are_without_time_no_half_life_is_chosen() -> None:
    decay, _ = Trial(last_of_each(histories(followed(3)))).best_decay(SHIFT, Decay(power=0.5))
    assert decay.half_life == INF


def test_where_days_decide_and_not_places_a_half_life_is_chosen() -> None:
    """Items 0 to 15 speak for item 16 + i % 4. Three events of one group, then one of another.

    Half the users paused 90 days before the fourth event, and go on with the new group; the others
    did not, and stay with the old one. Nothing that counts events alone can tell them apart.
    """
    rng = np.random.default_rng(1)
    groups = np.array([rng.permutation(4)[:2] for _ in range(100)])
    paused = np.arange(100) % 2
    old = 4 * np.array([rng.permutation(4)[:3] for _ in range(100)]) + groups[:, :1]
    new = 4 * rng.integers(0, 4, (100, 1)) + groups[:, 1:]
    target = 16 + groups[np.arange(100), paused]
    rows = np.hstack([old, new, target[:, None]])
    days = np.outer(paused, [0.0, 0.0, 0.0, 90.0, 90.0]) + 0.1 * np.arange(5)
    speaks = np.zeros((N_ITEMS, N_ITEMS), np.float32)
    speaks[np.arange(16), 16 + np.arange(16) % 4] = 1.0
    form = ItemItem(sp.csr_matrix(speaks))
    trial = Trial(last_of_each(histories(rows, days=days)))
    decay, ndcg = trial.best_decay(form, Decay())
    assert decay.half_life < 90.0
    assert ndcg == 1.0
    untimed = Trial(last_of_each(histories(rows)))
    assert untimed.best_decay(form, Decay())[1] < 0.9


def test_a_kind_of_event_that_misleads_is_weighed_down() -> None:
    """The last item follows a buy; the four views beside it are noise."""
    rng = np.random.default_rng(2)
    kinds = np.ones((100, 6), int)
    bought = rng.integers(0, 5, 100)
    kinds[np.arange(100), bought] = 0
    rows = np.array([rng.permutation(N_ITEMS)[:6] for _ in range(100)])
    rows[:, -1] = (rows[np.arange(100), bought] + 1) % N_ITEMS
    trial = Trial(last_of_each(histories(rows, kinds)))
    decay, ndcg = trial.best_decay(SHIFT, Decay())
    weights = {"buy": 1.0, "view": 1.0, **(decay.kinds or {})}
    assert weights["view"] < weights["buy"]
    assert ndcg > 0.95
    plain, _ = trial.best_decay(SHIFT, Decay(), with_kinds=False)
    assert plain.kinds is None


def test_features_get_a_decay_and_nothing_else() -> None:
    choice = choose_features(Trial(last_of_each(histories(followed(3)))), SHIFT)
    assert (choice.ridge, choice.steps) == (None, None)
    assert choice.ndcg > 0.5


def steps(n_users: int = 150) -> Histories:
    """After n comes n + 1: three such steps from random places, six different items."""
    rng = np.random.default_rng(3)
    starts = np.array([2 * rng.permutation(10)[:3] + user % 2 for user in range(n_users)])
    rows = np.stack([starts, starts + 1], axis=2).reshape(n_users, 6) % N_ITEMS
    return histories(rows)


def before_last(every: Histories) -> Histories:
    last = np.zeros(len(every.items), bool)
    last[every.starts[1:] - 1] = True
    return every.where(~last)


def test_a_directed_channel_learns_what_comes_next() -> None:
    """Who met n met n + 1 as often as n - 1; order alone tells which comes next."""
    every = steps()
    trial, evidence = Trial(last_of_each(every)), Evidence.of_events(before_last(every))
    directed = choose_ridge(trial, evidence, directed=True, neighbors=20)
    assert directed.ndcg > 0.95
    assert directed.steps in [Steps(power) for power in selection.DIRECTED_POWERS]  # the very next
    linear = choose_ridge(trial, evidence, directed=False, neighbors=20)
    assert linear.steps is None
    assert linear.ndcg < directed.ndcg - 0.05


@pytest.mark.parametrize("useful", [True, False])
def test_side_rows_are_used_where_they_say_something(useful: bool) -> None:
    """Ten pairs of items, and users take both of a pair. Words name the pair, or lead astray.

    Five users have been seen whole where the words are of use, twenty where they are not.
    """
    rng = np.random.default_rng(4)
    pairs = np.array([rng.permutation(10)[:3] for _ in range(60)])
    rows = np.stack([2 * pairs, 2 * pairs + 1], 2).reshape(60, 6)
    seen = 5 if useful else 20
    named = np.arange(N_ITEMS) // 2 if useful else rng.permutation(N_ITEMS) // 2
    words = sp.csr_matrix(np.eye(10, dtype=np.float32)[named])
    nothing = sp.csr_matrix((N_ITEMS, 1), dtype=np.float32)
    trial = Trial(last_of_each(histories(rows[seen:])))
    evidence = Evidence(histories(rows[:seen]), ItemFeatures(words, nothing, None))
    choice = choose_ridge(trial, evidence, directed=False, neighbors=20)
    assert choice.ridge is not None
    assert choice.ridge.entities == 0.0
    assert choice.ndcg > 0.9
    assert (choice.ridge.words > 0.0) == useful


def test_the_penalty_of_ease_is_the_best_of_those_around_it() -> None:
    """No neighbour of the chosen penalty ranks better."""
    every = steps()
    evidence = Evidence.of_events(before_last(every))
    trial = Trial(last_of_each(every))
    chosen = choose_ease(trial, evidence, neighbors=20)
    place = selection.PENALTIES.index(chosen)
    moments = evidence.linear_moments()

    def ndcg(penalty: float) -> float:
        weights = moments.weights(Ridge(penalty), neighbors=20)
        return trial.ndcg(ItemItem(weights), Decay())

    around = selection.PENALTIES[max(0, place - 1) : place + 2]
    assert ndcg(chosen) == max(ndcg(penalty) for penalty in around)


def test_a_large_catalogue_is_searched_on_its_most_popular_items(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Item 5 has three events, 2 has two, others one: the two most popular are 2 and 5."""
    every = histories(np.array([[5, 0, 2], [5, 1, 2], [3, 5, 4]]))
    held_out = histories(np.array([[2, 7], [8, 9], [2, 5]]))
    features = sp.csr_matrix(np.arange(N_ITEMS, dtype=np.float32)[:, None])
    evidence = Evidence(every, ItemFeatures(features, features, None))
    queries = user_queries(every, held_out, every)
    assert sub_catalogue(evidence, queries) == (evidence, queries)
    monkeypatch.setattr(selection, "WHOLE_ITEMS", N_ITEMS - 1)
    monkeypatch.setattr(selection, "SEARCH_ITEMS", 2)
    smaller, narrowed = sub_catalogue(evidence, queries)
    assert smaller.histories.n_items == 2
    assert smaller.features.words.toarray().ravel().tolist() == [2.0, 5.0]
    assert narrowed.users.tolist() == [0, 2]  # user 1 has no answer left
    spans = zip(narrowed.spans.first, narrowed.spans.last, strict=True)
    assert [narrowed.histories.items[a:b].tolist() for a, b in spans] == [[1, 0], [1]]
    assert narrowed.relevant.toarray().tolist() == [[1, 0], [1, 1]]
    assert narrowed.excluded.toarray().tolist() == [[1, 1], [0, 1]]
