"""Graph encoders: what an item's vector is made of, and that all of it is learned."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.data import HeteroData

from kgrank.errors import ConfigError, ModelError
from kgrank.kg import gnn
from kgrank.kg.entities import entity_vectors
from kgrank.kg.gnn import EncoderName, GraphInput, LightEncoder, graph_encoder, type_starts
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.message_passing import MessageEncoder
from kgrank.kg.tables import checked_tables


@pytest.fixture
def graph() -> GraphInput:
    """Four products: a and b of one brand, b and c of one colour, d of a colour of its own.

    Two users met a, b and c; nobody met d.
    """
    items = pd.DataFrame(
        {
            "item_id": list("abcd"),
            "title": ["", "", "", ""],
            "description": "",
            "brand": ["acme", "acme", "", ""],
            "colour": ["", "red", "red", "blue"],
        }
    )
    events = pd.DataFrame(
        {"user_id": ["u", "u", "v", "v"], "item_id": list("abbc"), "event": "click"}
    )
    tables = checked_tables({"events": events, "items": items})
    behaviours = {"click": sp.csr_matrix(np.array([[1, 1, 0, 0], [0, 1, 1, 0]], np.float32))}
    words = sp.csr_matrix((4, 0), dtype=np.float32)
    return GraphInput.of(KnowledgeGraph.from_tables(tables).to_pyg(), behaviours, words)


def test_facts_are_weighted_by_rarity_and_rows_have_length_one(graph: GraphInput) -> None:
    known = graph.known.toarray()
    half = 1 / math.sqrt(2)  # b has two facts that are equally rare
    of_b = known[1][known[1] > 0]
    assert of_b == pytest.approx([half, half])
    assert sorted(known[0][known[0] > 0]) == pytest.approx([1.0])
    assert not known[3].any()  # a fact of one item alone links it to nothing
    assert len(np.unique(graph.relations)) == 2


def test_what_facts_bring_is_the_sum_over_edges(graph: GraphInput) -> None:
    encoder = LightEncoder(graph, 8, hops=0)
    by_edge = torch.from_numpy(graph.known.toarray()) @ encoder.facts()
    assert torch.allclose(encoder.brought(), by_edge, atol=1e-6)


def test_a_step_reaches_the_items_of_the_same_users(graph: GraphInput) -> None:
    encoder = LightEncoder(graph, 8, hops=1)
    with torch.no_grad():
        known = torch.from_numpy(graph.known.toarray()) @ encoder.facts()
        near = encoder.brought() - known
        met = encoder.base() + known
    x = graph.behaviours["click"].toarray()
    scaled = x / np.sqrt(x.sum(1, keepdims=True)) / np.sqrt(np.maximum(x.sum(0), 1))
    expected = gnn.HOP * torch.from_numpy(scaled.T @ scaled).float() @ met
    assert torch.allclose(near, expected, atol=1e-5)
    assert not bool(near[3].any())  # nobody met d


def test_a_product_nobody_met_is_what_its_facts_say(graph: GraphInput) -> None:
    encoder = LightEncoder(graph, 8, hops=0)
    encoder.met[2] = 0.0  # as if nobody had met c, which is red
    sources, targets = encoder()
    facts = torch.nn.functional.normalize(encoder.brought(), dim=1)
    assert torch.allclose(targets[2], facts[2], atol=1e-6)
    assert torch.equal(sources[2], targets[2])
    assert not targets[3].any()  # d has neither users nor facts it shares


@pytest.mark.parametrize("name", get_args(EncoderName))
def test_every_part_is_learned_and_vectors_have_length_one(
    graph: GraphInput, name: EncoderName
) -> None:
    torch.manual_seed(0)
    encoder = graph_encoder(name, graph, 8, 1)
    sources, targets = encoder()
    assert torch.allclose(targets[:3].norm(dim=1), torch.ones(3), atol=1e-5)
    (sources * torch.randn(4, 8)).sum().backward(retain_graph=True)
    (targets * torch.randn(4, 8)).sum().backward()
    for part, parameter in encoder.named_parameters():
        if parameter.numel() and not part.startswith(("layers", "kind", "tables")):
            assert parameter.grad is not None, part
            assert bool(parameter.grad.any()), part
    if name != "light":
        assert any(p.grad is not None and bool(p.grad.any()) for p in encoder.layers.parameters())


@pytest.mark.parametrize("name", get_args(EncoderName))
@pytest.mark.parametrize("dim", [1, 7])
def test_any_length_of_vectors_will_do(graph: GraphInput, name: EncoderName, dim: int) -> None:
    sources, targets = graph_encoder(name, graph, dim, 1)()
    (sources.sum() + targets.sum()).backward()
    assert sources.shape == targets.shape == (4, dim)


@pytest.mark.filterwarnings("ignore:There exist type names:UserWarning")  # `__` in HeteroData
@pytest.mark.parametrize("name", get_args(EncoderName))
def test_columns_and_events_may_have_any_name(name: EncoderName) -> None:
    """The names that torch's modules have for themselves, and two whose reverse are alike."""
    columns = ("type", "keys", "values", "half", "training", "spec.color", "__x__y", "Größe")
    items = pd.DataFrame({"item_id": list("abcd"), "title": "", "description": ""})
    items = items.assign(**{column: ["p", "p", "q", "q"] for column in columns})
    events = pd.DataFrame({"user_id": ["u"] * 4, "item_id": list("abcd"), "event": "view"})
    triples = pd.DataFrame(
        {
            "head": ["a", "b", "c", "d"],
            "relation": ["near", "near", "rev_near", "rev_near"],
            "tail": ["c", "c", "a", "a"],
        }
    )
    tables = checked_tables({"events": events, "items": items, "triples": triples})
    data = KnowledgeGraph.from_tables(tables).to_pyg()
    kinds = ("add.to cart", "rev_view", "view")
    behaviours = {kind: sp.csr_matrix(np.ones((1, 4), np.float32)) for kind in kinds}
    graph = GraphInput.of(data, behaviours, sp.csr_matrix((4, 0), dtype=np.float32))
    encoder = graph_encoder(name, graph, 8, 1)
    sources, _ = encoder()
    sources.sum().backward()
    found = entity_vectors(encoder, graph).ids
    assert {f"{column}:{value}" for column in columns for value in "pq"} <= set(found)
    if isinstance(encoder, MessageEncoder):  # 8 attributes, 2 relations, 3 behaviours, both ways
        assert len(encoder._edges) == 2 * (8 + 2 + 3)


def test_a_name_of_no_encoder_is_refused(graph: GraphInput) -> None:
    with pytest.raises(ConfigError, match="'ligth'; allowed: light, rgcn, gatv2, hgt"):
        graph_encoder("ligth", graph, 8, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", get_args(EncoderName))
def test_steps_over_no_behaviours_are_refused(graph: GraphInput, name: EncoderName) -> None:
    alone = replace(graph, behaviours={})
    with pytest.raises(ModelError, match="found no behaviours; allowed: one kind of event"):
        graph_encoder(name, alone, 8, 1)
    assert LightEncoder(alone, 8, hops=0)()[0].shape == (4, 8)


def test_behaviours_and_words_are_of_the_graphs_items(graph: GraphInput) -> None:
    words = sp.csr_matrix((4, 0), dtype=np.float32)
    narrow = {"click": sp.csr_matrix((2, 3), dtype=np.float32)}
    with pytest.raises(ModelError, match="found 3 columns of 'click'; allowed: 4"):
        GraphInput.of(graph.data, narrow, words)
    with pytest.raises(ModelError, match="found 3 rows of words; allowed: 4"):
        GraphInput.of(graph.data, graph.behaviours, words[:3])
    users = {**graph.behaviours, "buy": sp.csr_matrix((5, 4), dtype=np.float32)}
    with pytest.raises(ModelError, match="behaviours of 2 and 5 users"):
        GraphInput.of(graph.data, users, words)


def test_an_epoch_of_a_large_graph_walks_a_sample_and_the_end_all(
    graph: GraphInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    small = LightEncoder(graph, 8, hops=1)
    whole = small.brought()
    small.draw(0)
    assert torch.equal(small.brought(), whole)  # few events: all of them, always
    monkeypatch.setattr(gnn, "WALKED_EDGES", 2)
    monkeypatch.setattr(gnn, "FANOUT", 1)
    torch.manual_seed(0)
    encoder = LightEncoder(graph, 8, hops=1)
    assert not encoder._behaviours  # nothing is built before it is walked
    encoder.draw(0)
    assert len(encoder._behaviours[0].forward.columns) == 2  # one event of each user
    encoder.draw(None)
    assert torch.equal(encoder.brought(), whole)


def test_what_an_epoch_walks_is_drawn_from_the_seed_the_epoch_and_the_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """200 users met all of 20 items in two kinds: each row's two events weigh 20 / 2 times more."""
    monkeypatch.setattr(gnn, "WALKED_EDGES", 2)
    monkeypatch.setattr(gnn, "FANOUT", 2)
    data = HeteroData()
    data["item"].num_nodes = 20
    met = sp.csr_matrix(np.full((200, 20), 3.0, np.float32))
    words = sp.csr_matrix((20, 0), dtype=np.float32)
    encoder = LightEncoder(GraphInput.of(data, {"a": met, "b": met}, words), 8, hops=1)

    def drawn(epoch: int, seed: int) -> list[list[int]]:
        encoder.draw(epoch, seed)
        return [edges.forward.columns.tolist() for edges in encoder._behaviours]

    first = drawn(0, 7)
    assert drawn(0, 7) == first
    assert first[0] != first[1]
    assert drawn(1, 7) != first != drawn(0, 8)
    weights = encoder._behaviours[0].forward.weights
    assert weights.numpy() == pytest.approx(np.full(400, 10 / np.sqrt(200 * 20)))


# Vectors of entities


def test_an_entitys_vector_is_what_its_fact_brings(graph: GraphInput) -> None:
    """c is red and nothing else: all it gains is red. b gains acme and red, each times 1 / √2."""
    torch.manual_seed(0)
    encoder = LightEncoder(graph, 8, hops=0)
    with torch.no_grad():
        encoder.relation.mul_(torch.tensor([[2.0], [3.0]]))
        brought = encoder.brought().numpy()
    found = entity_vectors(encoder, graph)
    assert sorted(found.ids) == ["brand:acme", "colour:red"]  # blue is of one item alone
    vectors = dict(zip(found.ids, found.values, strict=True))
    assert brought[0] == pytest.approx(vectors["brand:acme"], abs=1e-6)
    assert brought[2] == pytest.approx(vectors["colour:red"], abs=1e-6)
    both = (vectors["brand:acme"] + vectors["colour:red"]) / math.sqrt(2)
    assert brought[1] == pytest.approx(both, abs=1e-6)


def test_an_entity_of_several_relations_is_the_mean_over_items() -> None:
    """a, b, c are made of steel, b and c come with it: (3 · made_of + 2 · comes_with) / 5.

    a and b also point to c: an item, which has a vector of its own.
    """
    triples = pd.DataFrame(
        {
            "head": ["a", "b", "c", "b", "c", "a", "b"],
            "relation": ["made_of"] * 3 + ["comes_with"] * 2 + ["beside"] * 2,
            "tail": ["steel"] * 5 + ["c"] * 2,
        }
    )
    items = pd.DataFrame({"item_id": list("abcd"), "title": "", "description": ""})
    events = pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "event": ["click"]})
    tables = checked_tables({"events": events, "items": items, "triples": triples})
    data = KnowledgeGraph.from_tables(tables).to_pyg()
    behaviours = {"click": sp.csr_matrix(np.array([[1, 0, 0, 0]], np.float32))}
    graph = GraphInput.of(data, behaviours, sp.csr_matrix((4, 0), dtype=np.float32))
    encoder = LightEncoder(graph, 2, hops=0)
    [steel] = np.flatnonzero(graph.nodes == type_starts(data)[0]["entity"])
    counts = np.bincount(graph.known.indices)
    with torch.no_grad():
        encoder.tail[steel] = torch.tensor([1.0, 10.0])
        for fact in np.flatnonzero(graph.tails == steel):
            encoder.relation[graph.relations[fact]] = 1.0 if counts[fact] == 3 else 6.0
    found = entity_vectors(encoder, graph)
    assert found.ids == ("steel",)
    assert found.values.tolist() == [[pytest.approx(3.0), pytest.approx(30.0)]]


@pytest.mark.parametrize("name", ["rgcn", "gatv2", "hgt"])
def test_entities_of_the_other_encoders_are_what_they_start_from(
    graph: GraphInput, name: EncoderName
) -> None:
    encoder = graph_encoder(name, graph, 8, 1)
    found = entity_vectors(encoder, graph)
    assert sorted(found.ids) == ["brand:acme", "colour:red"]
    [red] = np.flatnonzero(graph.data["colour"].node_id == "colour:red")
    assert isinstance(encoder, MessageEncoder)
    table = encoder.table("colour").detach().numpy()
    assert found.values[found.ids.index("colour:red")].tolist() == table[red].tolist()


def test_a_graph_without_facts_has_no_entity_vectors() -> None:
    events = pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "event": ["click"]})
    data = KnowledgeGraph.from_tables(checked_tables({"events": events})).to_pyg()
    behaviours = {"click": sp.csr_matrix(np.ones((1, 1), np.float32))}
    graph = GraphInput.of(data, behaviours, sp.csr_matrix((1, 0), dtype=np.float32))
    found = entity_vectors(LightEncoder(graph, 8, hops=1), graph)
    assert (found.ids, found.values.shape) == ((), (0, 8))
