"""A channel is linear in the history, and its scores split over the events that made them."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from kgrank.fusion.channels import (
    Channel,
    DenseFeatures,
    Form,
    ItemItem,
    SparseFeatures,
    sizes,
)
from kgrank.fusion.history import Decay
from kgrank.kg.exchange import entity_features, unit_rows

N_ITEMS = 7


def random_rows(shape: tuple[int, int], seed: int) -> sp.csr_matrix:
    return sp.random(*shape, 0.5, "csr", np.float32, np.random.default_rng(seed))


FORMS: dict[str, Form] = {
    "item-item": ItemItem(random_rows((N_ITEMS, N_ITEMS), 1)),
    "sparse": SparseFeatures(random_rows((N_ITEMS, 4), 2)),
    "dense": DenseFeatures(torch.from_numpy(random_rows((N_ITEMS, 3), 3).toarray())),
}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


@each_form
def test_scores_of_a_sum_of_histories_are_the_sum_of_their_scores(form: Form) -> None:
    one, other = random_rows((5, N_ITEMS), 4), random_rows((5, N_ITEMS), 5)
    both = form.scores((one + 2 * other).tocsr())
    assert both.shape == (5, N_ITEMS)
    assert both.dtype == torch.float32
    torch.testing.assert_close(both, form.scores(one) + 2 * form.scores(other))


@each_form
def test_what_one_event_says_is_the_score_of_a_history_of_that_event(form: Form) -> None:
    single = form.scores(sp.identity(N_ITEMS, np.float32, format="csr")).numpy()
    events = np.array([3, 0, 3, 6])
    for target in range(N_ITEMS):
        found = form.of_events(events, target)
        assert found.shape == (4,)
        assert found == pytest.approx(single[events, target])


@each_form
def test_an_empty_history_scores_zero(form: Form) -> None:
    histories = sp.csr_matrix(np.array([[0] * N_ITEMS, [1] * N_ITEMS], np.float32))
    scores = form.scores(histories)
    assert scores[0].tolist() == [0.0] * N_ITEMS
    assert scores[1].abs().sum() > 0


def test_scores_by_hand() -> None:
    """A history 2 · item 0 + item 1 over three items, through each form."""
    history = sp.csr_matrix(np.array([[2, 1, 0]], np.float32))
    weights = sp.csr_matrix(np.array([[0, 1, 3], [5, 0, 0], [7, 7, 0]], np.float32))
    assert ItemItem(weights).scores(history).tolist() == [[5.0, 2.0, 6.0]]
    features = np.array([[1, 0], [0, 1], [1, 1]], np.float32)  # the history is (2, 1)
    assert SparseFeatures(sp.csr_matrix(features)).scores(history).tolist() == [[2.0, 1.0, 3.0]]
    assert DenseFeatures(torch.from_numpy(features)).scores(history).tolist() == [[2.0, 1.0, 3.0]]


def test_size_is_the_root_mean_square_and_one_for_a_row_of_zeros() -> None:
    """√((9 + 16 + 0 + 0) / 4) = 2.5."""
    scores = torch.tensor([[3.0, -4.0, 0.0, 0.0], [0.0] * 4])
    assert sizes(scores).tolist() == [[2.5], [1.0]]


@each_form
def test_the_size_of_one_history_is_that_of_its_scores(form: Form) -> None:
    """An item that comes twice adds up; a history that says nothing has size 1."""
    history = sp.csr_matrix(np.array([[0, 2, 0, -1, 0, 3, 0]], np.float32))
    items, weights = np.array([5, 1, 3, 5]), np.array([1, 2, -1, 2], np.float32)
    assert form.size(items, weights) == pytest.approx(float(sizes(form.scores(history))[0, 0]))
    assert form.size(items[:0], weights[:0]) == 1.0


@each_form
def test_scaled_rows_are_the_scores_over_their_sizes(form: Form) -> None:
    """A history that says nothing has size 1."""
    histories = random_rows((6, N_ITEMS), 7).tolil()
    histories[2] = 0
    histories = histories.tocsr()
    scores = form.scores(histories)
    rows, size = form.scaled(histories)
    assert size.dtype == np.float32
    assert size == pytest.approx(sizes(scores)[:, 0].numpy(), rel=1e-5)
    assert size[2] == 1.0
    if isinstance(form, DenseFeatures):
        rows = rows @ form.values.T
    assert rows.numpy() == pytest.approx(scores.numpy() / size[:, None], rel=1e-5, abs=1e-6)


def test_a_history_along_a_weak_direction_has_its_size() -> None:
    """Items (b, -b) and three (1, 1), b = 1e-4; a history of the first scores (2b², 0, 0, 0).

    Its size is 2b² / √4 = b². In float32, b² is lost beside the three.
    """
    b = 1e-4
    form = DenseFeatures(torch.tensor([[b, -b], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]))
    _, size = form.scaled(sp.csr_matrix(np.array([[1, 0, 0, 0]], np.float32)))
    assert size == pytest.approx([b * b], rel=1e-5)


def test_moving_a_channel_keeps_what_it_says() -> None:
    for form in FORMS.values():
        channel = Channel("any", Decay(power=1.0), form)
        moved = channel.to("cpu")
        history = random_rows((2, N_ITEMS), 6)
        assert moved.form.scores(history).tolist() == form.scores(history).tolist()
        assert (moved.name, moved.decay) == ("any", channel.decay)


def test_rows_are_scaled_to_length_one_and_empty_ones_stay_empty() -> None:
    rows = unit_rows(sp.csr_matrix(np.array([[3, 4], [0, 0]], np.float32)))
    assert rows.toarray() == pytest.approx(np.array([[0.6, 0.8], [0.0, 0.0]]))


def test_a_rare_entity_links_more_than_a_frequent_one_and_one_of_a_single_item_nothing() -> None:
    """Of 4 items, two have A (idf log 2), three B (log 4/3), one C (nothing)."""
    a, b = np.log(2), np.log(4 / 3)
    links = sp.csr_matrix(np.array([[1, 1, 0], [5, 0, 0], [0, 1, 1], [0, 1, 0]], np.float32))
    length = np.hypot(a, b)
    expected = [[a / length, b / length, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert entity_features(links).toarray() == pytest.approx(np.array(expected), abs=1e-6)
