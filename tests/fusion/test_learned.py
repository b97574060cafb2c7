"""The learned channel: it finds what is planted, and its loss is the one that is written down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from kgrank.fusion import next_items
from kgrank.fusion.channels import DenseFeatures
from kgrank.fusion.evidence import Evidence, ItemFeatures, numbered
from kgrank.fusion.history import Histories, Spans
from kgrank.fusion.learned import Learner, Start, leading
from kgrank.fusion.next_items import NextItems, NextItemTask, Rows
from kgrank.fusion.queries import Queries
from kgrank.fusion.settings import FitSettings
from kgrank.fusion.training import valid_queries
from kgrank.kg import gnn
from kgrank.kg.building import GraphSettings
from kgrank.kg.gnn import GraphInput, LightEncoder, graph_encoder
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.tables import checked_tables
from kgrank.kg.vocabulary import Vocabulary
from kgrank.settings import LearnSettings


def world(events: pd.DataFrame) -> tuple[Histories, Queries, KnowledgeGraph]:
    """Train histories, valid queries and the graph of an events table."""
    tables = checked_tables({"events": events})
    users = Vocabulary.from_ids(events["user_id"].drop_duplicates())
    items = Vocabulary.from_ids(tables.items["item_id"])
    histories, splits = numbered(tables.events, users, items)
    queries = valid_queries(histories, splits, FitSettings())
    return histories.where(splits == 0), queries, KnowledgeGraph.from_tables(tables)


def task_of(
    histories: Histories,
    queries: Queries,
    graph: KnowledgeGraph,
    *,
    hops: int = 0,
    timed: bool = False,
    batch: int = 64,
) -> NextItemTask:
    words = sp.csr_matrix((histories.n_items, 0), dtype=np.float32)
    known = GraphInput.of(graph.to_pyg(), histories.by_kind(), words)
    torch.manual_seed(0)
    module = NextItems(graph_encoder("light", known, 8, hops), 50, 1, timed=timed, power=0.5)
    return NextItemTask(
        module, histories, ordered=True, judged=queries, batch=batch, seed=0, device="cpu"
    )


def test_order_is_learned(step_events: pd.DataFrame) -> None:
    histories, queries, graph = world(step_events)
    learner = Learner(
        graph.to_pyg(),
        GraphSettings(dim=16, hops=0),
        LearnSettings(epochs=12, batch=64, rate=0.02, patience=12),
    )
    start = sp.identity(histories.n_items, np.float32, format="csr")
    form, _, trained = learner.learn(
        Evidence.of_events(histories), Start(start, 0.0), ordered=True, queries=queries
    )
    scores = form.scores(sp.identity(histories.n_items, np.float32, format="csr"))
    numbers = {int(i[1:]): n for n, i in enumerate(graph.items.ids())}
    follows = [int(scores[numbers[n]].argmax()) == numbers[(n + 1) % 20] for n in range(0, 20)]
    assert sum(follows) >= 18
    assert max(trained.valid) > 0.8


def test_text_vectors_are_heard_as_far_as_they_are_told(even_events: pd.DataFrame) -> None:
    """Items that no event tells apart are apart where their text vectors are."""
    histories, queries, graph = world(even_events)
    n_items = histories.n_items
    texts = np.eye(2, dtype=np.float32)[np.arange(n_items) % 2]
    nothing = sp.csr_matrix((n_items, 1), dtype=np.float32)
    evidence = Evidence(histories, ItemFeatures(nothing, nothing, texts))
    weights = sp.identity(n_items, np.float32, format="csr")
    learn = LearnSettings(epochs=1, rate=1e-6)

    def cosine(text: float) -> float:
        """Between items 0 and 2, whose text is the same, less that between 0 and 1."""
        learner = Learner(graph.to_pyg(), GraphSettings(dim=20, hops=0), learn)
        form, _, _ = learner.learn(
            evidence, Start(weights, text), ordered=True, queries=queries, epochs=1
        )
        alike = form.values @ form.values.T
        return float(alike[0, 2] - alike[0, 1])

    assert cosine(0.0) == pytest.approx(0.0, abs=1e-3)
    assert 0.0 < cosine(0.2) < cosine(1.0)


def test_the_seed_of_a_training_draws_what_its_epochs_walk(
    even_events: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gnn, "WALKED_EDGES", 2)
    monkeypatch.setattr(gnn, "FANOUT", 1)
    task = task_of(*world(even_events), hops=1)
    encoder = task.module.encoder
    assert isinstance(encoder, LightEncoder)

    def walked() -> list[int]:
        return [int(item) for edges in encoder._behaviours for item in edges.forward.columns]

    task.batches(3)
    of_seed_0 = walked()
    encoder.draw(3, seed=0)
    assert walked() == of_seed_0
    task.seed = 1
    task.batches(3)
    assert walked() != of_seed_0


def test_a_checkpoint_is_taken_with_the_facts_start_and_queries_it_began_with_alone(
    even_events: pd.DataFrame, tmp_path: Path
) -> None:
    """Each training is cut short after its first epoch."""
    histories, asked, _ = world(even_events)
    weights = sp.identity(histories.n_items, np.float32, format="csr")

    def first_step(
        brands: str = "abab" * 5,
        *,
        resume: bool = True,
        factor: float = 1.0,
        queries: Queries = asked,
        values: npt.NDArray[np.float64] | None = None,
    ) -> int:
        """The first step that is reported."""
        ids = even_events["item_id"].drop_duplicates()
        items = pd.DataFrame({"item_id": ids, "title": "", "brand": list(brands)})
        tables = checked_tables({"events": even_events, "items": items})
        told: list[int] = []

        def report(stage: str, done: int, total: int) -> None:
            told.append(done)
            if done > total / 2:
                raise KeyboardInterrupt

        data = KnowledgeGraph.from_tables(tables).to_pyg()
        settings, learn = GraphSettings(dim=4, hops=0), LearnSettings(epochs=2, batch=64)
        learner = Learner(data, settings, learn, checkpoints=tmp_path, resume=resume, report=report)
        with pytest.raises(KeyboardInterrupt):
            evidence = Evidence.of_events(replace(histories, values=values))
            start = Start(factor * weights, 0.0)
            learner.learn(evidence, start, ordered=True, queries=queries)
        return told[0]

    assert first_step(resume=False) == 1
    assert first_step() > 1
    for other in (
        {"brands": "aabb" * 5},
        {"factor": 2.0},
        {"queries": asked.take(np.arange(len(asked) - 1))},
        {"values": np.ones(len(histories.items))},
    ):
        assert first_step(resume=False) == 1
        assert first_step(**other) == 1  # type: ignore[arg-type]


def items_of(batch: Rows, row: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The items of a row's history, oldest first, and its targets."""
    share = slice(row, row + 1)
    items = batch.histories.items
    return items[batch.met(share)[1]], items[batch.wanted(share)[1]]


def test_the_loss_is_the_softmax_of_the_cosines(even_events: pd.DataFrame) -> None:
    task = task_of(*world(even_events))
    batch = task.batches(0)[0]
    loss = task.loss(batch, slice(None))
    sources, targets = (vectors.detach() for vectors in task.module.encoder())
    total = 0.0
    for row in range(len(batch.history)):
        events, wanted = items_of(batch, row)
        events = events[::-1].copy()
        ages = np.arange(1, len(events) + 1) ** -0.5
        user = (torch.from_numpy(ages).float()[:, None] * sources[events]).sum(0)
        logits = torch.nn.functional.normalize(user, dim=0) @ targets.T / 0.1
        logits[events] = -torch.inf
        total += float(-logits.log_softmax(0)[wanted].mean())
    assert float(loss.detach()) == pytest.approx(total / len(batch.history), rel=1e-5)


def test_what_is_chosen_again_is_no_target() -> None:
    """A user's a, b, a, c, b on train: new after a history are b and c, never a or b again."""
    rows = [(f"u{n}", item, place) for n in range(30) for place, item in enumerate("abacbd")]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    last = events["timestamp"] == 5
    queried = events.assign(event="purchase", split=np.where(last, "valid", "train"))
    task = task_of(*world(queried))
    batch = task.batches(0)[0]
    found = [items_of(batch, row) for row in range(len(batch.history))]
    asked = sorted(item for _, wanted in found for item in wanted.tolist())
    assert asked == [1] * 30 + [2] * 30  # b after a, c after a, b, a
    assert all(len(events) for events, _ in found)


def test_chunks_change_neither_loss_nor_gradients(
    even_events: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for cells in (10**9, 60):
        monkeypatch.setattr(next_items, "CHUNK", cells)
        task = task_of(*world(even_events))
        loss = task.loss(task.batches(0)[0], slice(None))
        loss.backward()
        found.append((float(loss.detach()), [p.grad for p in task.module.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for whole, chunked in zip(found[0][1], found[1][1], strict=True):
        if whole is not None and chunked is not None:
            assert torch.allclose(whole, chunked, atol=1e-5)


def test_one_walk_over_the_graph_serves_several_batches(even_events: pd.DataFrame) -> None:
    """What a batch without a walk says of the graph reaches its parameters at the next walk."""
    task = task_of(*world(even_events), hops=1)
    batch = task.batches(0)[0]
    walking, waiting = replace(batch, walks=True), replace(batch, walks=False)
    task.loss(walking, slice(None)).backward()
    once = {
        name: p.grad.clone() for name, p in task.module.named_parameters() if p.grad is not None
    }
    task.module.zero_grad()
    task.loss(waiting, slice(None)).backward()
    assert not task.settled
    own = {name for name, p in task.module.named_parameters() if p.grad is not None}
    assert own < set(once)  # the graph's parameters wait
    task.loss(walking, slice(None)).backward()
    assert task.settled
    for name, parameter in task.module.named_parameters():
        if name in once:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, 2 * once[name], rtol=1e-4, atol=1e-6)


def test_batches_grow_where_an_epoch_would_have_too_many(
    even_events: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = task_of(*world(even_events), batch=8).batches(0)
    monkeypatch.setattr(next_items, "MOST_STEPS", 5)
    fewer = task_of(*world(even_events), batch=8).batches(0)
    assert len(few) > len(fewer) == 5
    assert sum(len(batch.history) for batch in few) == sum(len(batch.history) for batch in fewer)
    assert max(len(batch.history) for batch in few) <= 9


def test_what_events_weigh_is_learned_and_told(even_events: pd.DataFrame) -> None:
    """The weights of a batch's events are those of the decay that comes with the channel."""
    histories, queries, graph = world(even_events)
    task = task_of(histories, queries, graph, timed=True)
    with torch.no_grad():
        task.module.gap[:] = torch.linspace(0, -2, len(task.module.gap))
        task.module.kind[:] = 0.3
    epoch = task.batches(0)
    batch, moments = epoch[0], epoch.moments[0]
    row, events = batch.met(slice(None))
    found = task.module.event_weights(histories, events, batch.history.last[row])
    spans = Spans(task.first[moments], moments)
    _, weights = histories.event_weights(spans, task.module.decay(histories))
    assert len(set(np.round(found.detach().numpy(), 4))) == 3  # of the last three events
    assert found.detach().numpy() == pytest.approx(weights[weights > 0], rel=1e-5)


def test_shares_of_a_batch_add_up(even_events: pd.DataFrame) -> None:
    task = task_of(*world(even_events))
    batch = task.batches(0)[0]
    parts = [float(task.loss(batch, slice(rank, None, 2)).detach()) for rank in (0, 1)]
    assert sum(parts) == pytest.approx(float(task.loss(batch, slice(None)).detach()), rel=1e-5)


def test_sampled_negatives_estimate_the_full_softmax(
    even_events: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = task_of(*world(even_events))
    expected = float(full.loss(full.batches(0)[0], slice(None)).detach())
    monkeypatch.setattr(next_items, "FULL_SOFTMAX", 5)
    monkeypatch.setattr(next_items, "NEGATIVES", 12)
    sampled = task_of(*world(even_events))
    assert 0 < sampled.inclusion.min() < sampled.inclusion.max() <= 1
    batch = sampled.batches(0)[0]
    assert batch.negatives is not None
    assert len(batch.negatives) < 20
    losses = []
    for seed in range(300):
        drawn = np.random.default_rng(seed).random(20) < sampled.inclusion
        batch = type(batch)(**{**vars(batch), "negatives": np.flatnonzero(drawn)})
        losses.append(float(sampled.loss(batch, slice(None)).detach()))
    assert np.mean(losses) == pytest.approx(expected, rel=0.05)


def test_leading_vectors_rebuild_weights_of_low_rank_with_fixed_signs() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((30, 4)), rng.standard_normal((30, 4))
    weights = sp.csr_matrix((left @ right.T).astype(np.float32))
    sources, targets = leading(weights, 4, seed=0)
    assert np.allclose(sources @ targets.T, weights.toarray(), atol=1e-3)
    largest = targets[np.abs(targets).argmax(axis=0), np.arange(4)]
    assert (largest > 0).all()
    again = leading(weights, 4, seed=5)
    assert np.allclose(again[1], targets, atol=1e-2)


def test_without_order_every_epoch_draws_other_histories(even_events: pd.DataFrame) -> None:
    histories, queries, graph = world(even_events)
    task = task_of(histories, queries, graph)
    unordered = NextItemTask(
        task.module, histories, ordered=False, judged=queries, batch=64, seed=0, device="cpu"
    )
    first, second = (unordered.batches(epoch)[0] for epoch in (0, 1))
    again = unordered.batches(0)[0]
    n_rows = len(first.history)
    drawn = [[items_of(of, row)[0].tolist() for row in range(n_rows)] for of in (first, again)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != [items_of(second, row)[0].tolist() for row in range(n_rows)]
    for row in range(n_rows):
        seen, wanted = items_of(first, row)
        assert len(seen)
        assert not set(seen) & set(wanted)


def test_the_channel_scores_with_sources_for_what_was_met() -> None:
    sources, targets = (
        torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        torch.tensor([[3.0, 1.0], [0.5, 4.0]]),
    )
    form = DenseFeatures(targets, sources)
    history = sp.csr_matrix(np.array([[1.0, 0.5]], np.float32))
    assert form.scores(history).tolist() == [[4.0, 4.5]]  # (1, 1) · (3, 1) and · (0.5, 4)
    assert form.of_events(np.array([0, 1]), 1).tolist() == [0.5, 8.0]
