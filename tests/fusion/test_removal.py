"""Scores without some edges: what a fit on events without them says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.data import HeteroData

from kgrank.fusion.channels import Channel, DenseFeatures, ItemItem, SparseFeatures
from kgrank.fusion.evidence import Evidence, ItemFeatures, Steps, item_side
from kgrank.fusion.history import Decay, Histories
from kgrank.fusion.item_item import Ridge
from kgrank.fusion.light_removal import LightParts
from kgrank.fusion.model import FusedModel
from kgrank.fusion.removal import Removed, Rescorer
from kgrank.fusion.weights import FusionWeights
from kgrank.kg.entities import LightSteps, entity_vectors
from kgrank.kg.exchange import unit_rows
from kgrank.kg.gnn import GraphInput, LightEncoder

N_USERS, N_ITEMS, N_ENTITIES, DIM = 30, 8, 5, 4
RIDGE = Ridge(penalty=3.0, dropout=0.2, entities=2.0, words=1.0)
DECAY = Decay(power=0.5)
USER, ITEM = 3, 6


def evidence(seed: int = 0) -> Evidence:
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(N_USERS), 6)
    items = np.concatenate([rng.permutation(N_ITEMS)[:6] for _ in range(N_USERS)])
    histories = Histories.from_arrays(
        users,
        items,
        np.zeros(len(users), np.int64),
        np.full(len(users), np.nan),
        kind_names=("view",),
        n_users=N_USERS,
        n_items=N_ITEMS,
    )
    entities = unit_rows(sp.random(N_ITEMS, N_ENTITIES, 0.6, "csr", np.float32, rng))
    words = unit_rows(sp.random(N_ITEMS, 4, 0.5, "csr", np.float32, rng))
    return Evidence(histories, ItemFeatures(sp.csr_matrix(words), sp.csr_matrix(entities)))


def channel_of(of: Evidence, name: str) -> Channel:
    """One channel as it is fitted on the evidence."""
    if name == "graph":
        return Channel(name, DECAY, SparseFeatures(of.features.entities))
    moments = of.linear_moments() if name == "linear" else of.directed_moments(Steps(0.5))
    return Channel(name, DECAY, ItemItem(moments.weights(RIDGE, neighbors=100)))


def rescorer(of: Evidence, channel: Channel, learned: dict[str, LightParts]) -> Rescorer:
    weights = FusionWeights.equal(1)
    model = FusedModel((channel,), item_side(of.histories), {"new": weights, "all": weights})
    ridges = {"linear": (RIDGE, None), "directed": (RIDGE, Steps(0.5))}
    return Rescorer(model, of, ridges, learned)


def without_event(of: Evidence, user: int, item: int) -> Evidence:
    histories = of.histories
    gone = (histories.users() == user) & (histories.items == item)
    assert gone.any()
    return replace(of, histories=histories.where(~gone))


@pytest.mark.parametrize("name", ["linear", "directed", "graph"])
def test_with_nothing_removed_it_is_the_score(name: str) -> None:
    of = evidence()
    channel = channel_of(of, name)
    made = rescorer(of, channel, {})
    span = of.histories.of_users(np.array([USER]))
    score = float(made.model.scores(of.histories, span, "new")[0, ITEM])
    found = made.score(of.histories, USER, ITEM, "new", Removed())
    assert found == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize("name", ["linear", "directed"])
def test_without_events_of_others_it_is_the_score_of_a_fit_without_them(name: str) -> None:
    """The size of the user's scores is left as it was, so the values are compared: × size."""
    of = evidence(1)
    made = rescorer(of, channel_of(of, name), {})
    histories = of.histories
    other = next(
        user
        for user in range(N_USERS)
        if user != USER and {1, ITEM} <= set(histories.items[6 * user : 6 * user + 6].tolist())
    )
    removed = Removed(others={other: frozenset({1, ITEM})})
    found = made.score(histories, USER, ITEM, "new", removed)
    fitted = channel_of(without_event(without_event(of, other, 1), other, ITEM), name)
    span = histories.of_users(np.array([USER]))
    row = histories.weights(span, DECAY)
    size = made.model.channels[0].form.size(row.indices, row.data)
    wanted = float(fitted.form.scores(row)[0, ITEM]) / size
    assert found == pytest.approx(wanted, rel=1e-4)
    whole = made.score(histories, USER, ITEM, "new", Removed())
    assert abs(found - whole) > 0.002


@pytest.mark.parametrize("name", ["linear", "directed", "graph"])
def test_without_facts_it_is_the_score_of_a_fit_without_them(name: str) -> None:
    """Rows of the graph channel are brought to length 1 again, side rows are not."""
    of = evidence(2)
    histories, entities = of.histories, of.features.entities
    met = histories.items[6 * USER : 6 * USER + 6].tolist()
    entity = int(entities[ITEM].indices[0])
    facts = {(ITEM, entity), *((h, entity) for h in met[:2])}
    made = rescorer(of, channel_of(of, name), {})
    changed = entities.tolil()
    for item, column in facts:
        changed[item, column] = 0.0
    rows = changed.tocsr()
    rows.eliminate_zeros()
    if name == "graph":
        rows = unit_rows(rows)
    fitted = channel_of(replace(of, features=replace(of.features, entities=rows)), name)
    span = histories.of_users(np.array([USER]))
    row = histories.weights(span, DECAY)
    size = made.model.channels[0].form.size(row.indices, row.data)
    wanted = float(fitted.form.scores(row)[0, ITEM]) / size
    found = made.score(histories, USER, ITEM, "new", Removed(facts=frozenset(facts)))
    assert found == pytest.approx(wanted, rel=1e-4)
    whole = made.score(histories, USER, ITEM, "new", Removed())
    assert abs(found - whole) > 0.01


def test_without_the_users_own_events_they_are_no_history_and_no_row() -> None:
    of = evidence(3)
    histories = of.histories
    made = rescorer(of, channel_of(of, "linear"), {})
    first = int(histories.items[6 * USER])
    found = made.score(histories, USER, ITEM, "new", Removed(own=frozenset({first})))
    less = without_event(of, USER, first)
    span = less.histories.of_users(np.array([USER]))
    row = less.histories.weights(span, DECAY)
    size = made.model.channels[0].form.size(row.indices, row.data)  # of the weights as they were
    wanted = float(channel_of(less, "linear").form.scores(row)[0, ITEM]) / size
    assert found == pytest.approx(wanted, rel=1e-4)


def test_learned_vectors_are_without_what_the_entity_brought() -> None:
    """h = (3, 4) = (3, 0) by itself and (0, 4) by the entity; i = (0, 2) by the entity and (2, 0).

    Lengths 5 and 2√2. With the entity ⟨h, i⟩ = (3·2 + 4·2) / (5 · 2√2); without it at i ⟨h, (1, 0)⟩
    = 3 / 5, and without it at both 1.
    """
    sums = torch.tensor([[3.0, 4.0], [2.0, 2.0]])
    lengths = sums.norm(dim=1)
    vectors = sums / lengths[:, None]
    form = DenseFeatures(vectors, vectors, None, np.stack([lengths.numpy()] * 2))
    histories = Histories.from_arrays(
        np.array([0]),
        np.array([0]),
        np.array([0]),
        np.array([0.0]),
        kind_names=("view",),
        n_users=1,
        n_items=2,
    )
    parts = LightParts(
        sp.csr_matrix(np.array([[4.0], [2.0]], np.float32)),
        np.array([[0.0, 1.0]], np.float32),
        None,
        histories,
    )
    of = Evidence.of_events(histories)
    made = rescorer(of, Channel("learned", Decay(), form), {"learned": parts})
    row = histories.weights(histories.of_users(np.array([0])), Decay())
    size = form.size(row.indices, row.data)
    scores = [
        made.score(histories, 0, 1, "new", Removed(facts=frozenset(facts))) * size
        for facts in ((), ((1, 0),), ((1, 0), (0, 0)))
    ]
    assert scores == pytest.approx([14 / (5 * 8**0.5), 0.6, 1.0], rel=1e-5)


def test_a_step_without_an_event_by_hand() -> None:
    """One user met items 0 and 1, base 2 and 3, w = 1/2: each edge weighs 1/√2, p = 5/√2.

    The user brings 1/2 · 1/√2 · 5/√2 = 1.25 to both. Without the event on item 1 its edge to item 0
    weighs 1, p = 2, so it brings 1 to item 0 and nothing to item 1.
    """
    steps = LightSteps(np.array([[2.0], [3.0]], np.float32), np.array([[[0.5]]], np.float32))
    histories = Histories.from_arrays(
        np.array([0, 0]),
        np.array([0, 1]),
        np.array([0, 0]),
        np.array([0.0, 1.0]),
        kind_names=("view",),
        n_users=1,
        n_items=2,
    )
    nothing = sp.csr_matrix((2, 1), dtype=np.float32)
    parts = LightParts(nothing, np.zeros((1, 1), np.float32), steps, histories)
    each = np.array([0, 1])
    assert parts.change(each, [(0, 1)], [])[:, 0] == pytest.approx([1.0 - 1.25, -1.25])
    assert parts.change(each, [], []).tolist() == [[0.0], [0.0]]


class World:
    """A light encoder on events of two kinds and facts, and its channel as training makes it."""

    def __init__(self, hops: int) -> None:
        rng = np.random.default_rng(20 + hops)
        self.histories = Histories.from_arrays(
            np.repeat(np.arange(N_USERS), 6),
            np.concatenate([rng.permutation(N_ITEMS)[:6] for _ in range(N_USERS)]),
            rng.integers(0, 2, 6 * N_USERS),
            np.full(6 * N_USERS, np.nan),
            kind_names=("buy", "view"),
            n_users=N_USERS,
            n_items=N_ITEMS,
        )
        known = unit_rows(sp.random(N_ITEMS, N_ENTITIES, 0.6, "csr", np.float32, rng))
        data = HeteroData()  # whose entities are the facts' tails
        data["item"].num_nodes = N_ITEMS
        data["entity"].num_nodes = N_ENTITIES
        data["entity"].node_id = [f"e{number}" for number in range(N_ENTITIES)]
        each = np.arange(N_ENTITIES)
        self.graph = GraphInput(
            sp.csr_matrix(known),
            np.zeros(N_ENTITIES, np.int64),
            each,
            each + N_ITEMS,
            self.histories.by_kind(),
            sp.csr_matrix((N_ITEMS, 0), dtype=np.float32),
            torch.zeros(N_ITEMS, 0),
            data,
        )
        torch.manual_seed(hops)
        self.encoder = LightEncoder(self.graph, DIM, hops)
        with torch.no_grad():
            for parameter in self.encoder.parameters():
                parameter.copy_(torch.randn_like(parameter))
        self.hops = hops

    def form(self) -> DenseFeatures:
        entities = entity_vectors(self.encoder, self.graph)
        with torch.no_grad():
            sources, targets = self.encoder()
            sums = torch.stack(self.encoder.sums(self.encoder.shared())).norm(dim=2)
        return DenseFeatures(targets, sources, entities, sums.numpy())

    def rescorer(self, form: DenseFeatures) -> Rescorer:
        assert form.entities is not None
        parts = LightParts(
            self.graph.known, form.entities.values, form.entities.steps, self.histories
        )
        of = Evidence.of_events(self.histories)
        return rescorer(of, Channel("learned", DECAY, form), {"learned": parts})

    def without(self, removed: Removed) -> DenseFeatures:
        """The channel of the same weights on what is left of the graph."""
        gone = np.zeros(len(self.histories.items), bool)
        users = self.histories.users()
        for user, items in {**removed.others, USER: removed.own}.items():
            gone |= (users == user) & np.isin(self.histories.items, list(items))
        known = self.graph.known.tolil()
        for item, column in removed.facts:
            known[item, column] = 0.0
        behaviours = self.histories.where(~gone).by_kind()
        graph = replace(self.graph, known=known.tocsr(), behaviours=behaviours)
        encoder = LightEncoder(graph, DIM, self.hops)
        encoder.load_state_dict(self.encoder.state_dict())
        with torch.no_grad():
            sources, targets = encoder()
        return DenseFeatures(targets, sources)


@pytest.mark.parametrize("hops", [0, 1, 2])
@pytest.mark.parametrize("which", ["others", "facts", "own", "all"])
def test_learned_scores_are_those_of_a_propagation_without_the_edges(hops: int, which: str) -> None:
    """Weights held; the size of the user's scores is that of the vectors as they were: × size."""
    world = World(hops)
    histories, form = world.histories, world.form()
    met = histories.items[6 * USER : 6 * USER + 6].tolist()
    item = next(number for number in range(N_ITEMS) if number not in met)
    both = {met[0], item}
    lists = histories.items.reshape(N_USERS, 6)
    v, w = [u for u in range(N_USERS) if u != USER and both <= set(lists[u].tolist())][:2]
    entity = int(world.graph.known[item].indices[0])
    others = {v: frozenset(both), w: frozenset({item})}
    facts = frozenset({(item, entity), *((h, entity) for h in met[1:3])})
    own = frozenset({met[0], met[4]})
    removed = {
        "others": Removed(others=others),
        "facts": Removed(facts=facts),
        "own": Removed(own=own),
        "all": Removed(own, others, facts),
    }[which]
    made = world.rescorer(form)
    span = histories.of_users(np.array([USER]))
    assert made.score(histories, USER, item, "new", Removed()) == pytest.approx(
        float(made.model.scores(histories, span, "new")[0, item]), rel=1e-5
    )
    of_user = np.flatnonzero(histories.users() == USER)
    kept = np.ones(len(histories.items), bool)
    kept[of_user] = ~np.isin(histories.items[of_user], list(removed.own))
    left = histories.where(kept)
    row = left.weights(left.of_users(np.array([USER])), DECAY)
    size = form.size(row.indices, row.data)
    wanted = float(world.without(removed).scores(row)[0, item]) / size
    found = made.score(histories, USER, item, "new", removed)
    assert found == pytest.approx(wanted, rel=2e-5)
    if which != "own" and (hops or which != "others"):
        whole = float(form.scores(row)[0, item]) / size
        assert abs(found - whole) > 0.001  # the vectors have changed, not the history alone
