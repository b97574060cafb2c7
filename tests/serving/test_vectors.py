"""A bundle's vectors in a store: their product is the dense part of the score, in any process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from kgrank.errors import ConfigError, DataError, ModelError, UnknownIdError
from kgrank.fusion.channels import Channel, DenseFeatures, ItemItem
from kgrank.fusion.evidence import Evidence
from kgrank.fusion.history import Decay
from kgrank.fusion.learned import Learner, Start
from kgrank.fusion.model import FusedModel, Head, Repeats
from kgrank.fusion.training import valid_queries
from kgrank.fusion.weights import FusionWeights
from kgrank.kg.building import GraphSettings
from kgrank.kg.embeddings import EmbeddingStore
from kgrank.kg.groups import Group
from kgrank.kg.tables import Tables
from kgrank.kg.vocabulary import Vocabulary
from kgrank.serving.bundle import Bundle
from kgrank.serving.cli import app
from kgrank.serving.recommender import Recommender
from kgrank.serving.training import prepare
from kgrank.settings import LearnSettings

Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="session")
def sparse_bundle(shop_bundle: Bundle) -> Bundle:
    """The sample shop without any dense channel."""
    model = shop_bundle.model
    kept = [n for n, c in enumerate(model.channels) if not isinstance(c.form, DenseFeatures)]
    channels = tuple(model.channels[n] for n in kept)
    heads = {head: weights.of_channels(kept) for head, weights in model.heads.items()}
    return replace(shop_bundle, model=FusedModel(channels, model.side, heads, model.predictors))


@pytest.fixture(scope="session")
def dense_bundle(
    shop_tables: Tables, sparse_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """That shop with two dense channels more, `embedding` and `learned`, all of them weighed.

    The learned one is trained for an epoch, in 16 dimensions.
    """
    config = sparse_bundle.config
    prepared = prepare(shop_tables, config, tmp_path_factory.mktemp("cache"))
    [start] = [c.form for c in sparse_bundle.model.channels if c.name == "linear"]
    assert isinstance(start, ItemItem)
    learner = Learner(prepared.graph.to_pyg(), GraphSettings(dim=16), LearnSettings(epochs=1))
    learned, _, _ = learner.learn(
        Evidence(prepared.histories.where(prepared.splits == 0), prepared.features),
        Start(start.weights, 0.5),
        ordered=True,
        queries=valid_queries(prepared.histories, prepared.splits, config.fit),
        epochs=1,
    )
    text = torch.from_numpy(np.random.default_rng(0).normal(size=(len(sparse_bundle.items), 4)))
    channels = (
        *sparse_bundle.model.channels,
        Channel("embedding", Decay(span=3.0, kinds={"view": 0.5}), DenseFeatures(text.float())),
        Channel("learned", Decay(power=0.7), learned),
    )
    n = len(channels)
    weights = FusionWeights(
        weight=np.linspace(0.2, 0.9, n, dtype=np.float32),
        slope=np.linspace(-0.3, 0.4, n, dtype=np.float32),
        cold=np.linspace(0.0, 0.8, n, dtype=np.float32),
        trend=0.5,
        cold_bias=0.25,
    )
    other = replace(weights, weight=weights.weight[::-1].copy(), trend=0.3)
    model = FusedModel(channels, sparse_bundle.model.side, {"new": weights, "all": other})
    return replace(sparse_bundle, model=model)


@pytest.fixture(scope="session")
def rec(dense_bundle: Bundle) -> Recommender:
    return Recommender(dense_bundle, "cpu")


@pytest.fixture(scope="session")
def store(rec: Recommender, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """All vectors of that bundle; not to be written into."""
    return rec.write_vectors(tmp_path_factory.mktemp("vectors") / "store", "all")


def learned_of(bundle: Bundle) -> DenseFeatures:
    [form] = [channel.form for channel in bundle.model.channels if channel.name == "learned"]
    assert isinstance(form, DenseFeatures)
    return form


def dense_part(bundle: Bundle, user: str, head: Head = "new") -> Floats:
    """(n_items): bias + Σ over the dense channels of gate · Σ_h w(h) ⟨S[h], V[i]⟩ / their rms."""
    model, histories = bundle.model, bundle.histories
    span = histories.of_users(bundle.users.numbers([user]))
    gates = model.heads[head].gates(model.side)
    total = model.heads[head].bias(model.side).astype(np.float64)
    for number, channel in enumerate(model.channels):
        if isinstance(channel.form, DenseFeatures):
            events, decayed = histories.event_weights(span, channel.decay)
            met = channel.form.of_history.double().numpy()[histories.items[events]]
            scores = channel.form.values.double().numpy() @ (decayed @ met)
            total += gates[number] * scores / np.sqrt(np.mean(scores**2))
    return total


@pytest.mark.parametrize("user", ["u-ada", "0001", "0005"])
def test_user_times_item_is_the_dense_part_of_the_score(
    dense_bundle: Bundle, store: EmbeddingStore, user: str
) -> None:
    items = store.vectors("item", store.ids("item"))
    found = items.astype(np.float64) @ store.vectors("user", [user])[0]
    np.testing.assert_allclose(found, dense_part(dense_bundle, user), atol=2e-6)


@pytest.mark.parametrize("repeats", ["allow", "only"])
def test_other_lists_have_other_vectors(
    rec: Recommender, store: EmbeddingStore, tmp_path: Path, repeats: Repeats
) -> None:
    other = rec.write_vectors(tmp_path, users=["0005"], repeats=repeats)
    items = other.vectors("item", other.ids("item")).astype(np.float64)
    found = items @ other.vectors("user", ["0005"])[0]
    np.testing.assert_allclose(found, dense_part(rec.bundle, "0005", "all"), atol=2e-6)
    assert np.abs(found - dense_part(rec.bundle, "0005", "new")).max() > 0.1


def test_a_user_in_the_learned_channel_is_its_score_before_the_gate(
    rec: Recommender, store: EmbeddingStore
) -> None:
    bundle, model = rec.bundle, rec.model
    spans = bundle.histories.of_users(bundle.users.numbers(["0005"]))
    said = dict(model.channel_scores(bundle.histories, spans, "new"))["learned"].numpy()[0]
    found = store.vectors("learned", store.ids("learned"))
    found = found @ store.vectors("learned_user", ["0005"])[0]
    gates = model.heads["new"].gates(model.side)[-1]
    np.testing.assert_allclose(gates * found, said, atol=2e-6)
    assert np.sqrt(np.mean(found**2)) == pytest.approx(1.0)


def test_the_rest_of_the_score_is_what_the_other_channels_add(
    rec: Recommender, store: EmbeddingStore
) -> None:
    model, histories = rec.model, rec.bundle.histories
    users = ["u-ada", "0005"]
    spans = histories.of_users(rec.bundle.users.numbers(users))
    found = store.vectors("user", users) @ store.vectors("item", rec.bundle.items.ids()).T
    parts = dict(model.channel_scores(histories, spans, "new"))
    assert model.dense_channels("new") == {"embedding": 4, "learned": 16}
    others = model.other_channels("new")
    assert others == ("linear", "directed", "graph", "text", "repeat")
    whole = found + sum(parts[name].numpy() for name in others)
    np.testing.assert_allclose(whole, model.scores(histories, spans, "new").numpy(), atol=2e-6)


def test_every_id_has_its_vector(dense_bundle: Bundle, store: EmbeddingStore) -> None:
    learned = learned_of(dense_bundle)
    learned_dims = dict.fromkeys(("learned", "learned_history", "learned_user", "entity"), 16)
    assert store.dims == {"item": 21, "user": 21, **learned_dims}
    ids = dense_bundle.items.ids().tolist()
    for group in ("item", "learned", "learned_history"):
        assert store.ids(group).tolist() == ids
    for group in ("user", "learned_user"):
        assert store.ids(group).tolist() == dense_bundle.users.ids().tolist()
    some = [ids[7], ids[3]]
    listed, met = learned.values[[7, 3]], learned.of_history[[7, 3]]
    assert store.vectors("learned", some).tobytes() == listed.numpy().tobytes()
    assert store.vectors("learned_history", some).tobytes() == met.numpy().tobytes()
    entities = store.ids("entity").tolist()
    bottle = dense_bundle.item_table.set_index("item_id").loc["brook-bottle"]
    assert {f"brand:{bottle['brand']}", f"category:{bottle['category']}"} <= set(entities)
    assert set(entities) <= set(dense_bundle.graph.nodes.entities.ids())
    assert learned.entities is not None
    assert store.vectors("entity", entities).tobytes() == learned.entities.values.tobytes()


SEARCH = """
import json, sys, kgrank
store = kgrank.EmbeddingStore.open(sys.argv[1])
users = store.nearest("item", store.vectors("user", ["u-ada", "0005"]), n=10)
after = store.nearest("learned", store.vectors("learned_history", ["brook-bottle"]), n=10)
print(json.dumps([users.ids.tolist(), after.ids.tolist()]))
"""


def test_a_new_process_finds_what_the_scores_say(
    dense_bundle: Bundle, store: EmbeddingStore
) -> None:
    command = [sys.executable, "-c", SEARCH, str(store.path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    users, after = json.loads(done.stdout)
    items = dense_bundle.items
    for user, found in zip(("u-ada", "0005"), users, strict=True):
        best = np.argsort(-dense_part(dense_bundle, user), kind="stable")[:10]
        assert found == items.ids(best).tolist()
    learned = learned_of(dense_bundle)
    bottle = items.numbers(["brook-bottle"])
    scores = learned.values.double().numpy() @ learned.of_history.double().numpy()[bottle[0]]
    assert after == [items.ids(np.argsort(-scores, kind="stable")[:10]).tolist()]


def test_the_nearest_of_the_learned_channel_are_its_similar_items(
    dense_bundle: Bundle, tmp_path: Path
) -> None:
    """A bundle of the learned channel alone, every gate 1."""
    model = dense_bundle.model
    alone = FusionWeights.single(1, 0)
    learned = FusedModel(model.channels[-1:], model.side, {"new": alone, "all": alone})
    rec = Recommender(replace(dense_bundle, model=learned), "cpu")
    store = rec.write_vectors(tmp_path)
    near = store.nearest("learned", store.vectors("learned_history", ["brook-bottle"]), n=11)
    found = [id_ for id_ in near.ids[0] if id_ != "brook-bottle"]
    assert found[:10] == rec.similar_items(["brook-bottle"], n=10)["similar_id"].tolist()


# Written again


def written(store: EmbeddingStore) -> dict[str, int]:
    """Group → how many vectors its newest file holds, where this generation wrote one."""
    name = f"-{store.generation}.safetensors"
    newest = {group: entry.segments[-1] for group, entry in store.manifest.groups.items()}
    return {group: entry.rows for group, entry in newest.items() if entry.file.endswith(name)}


def test_only_what_changed_is_written_again(dense_bundle: Bundle, tmp_path: Path) -> None:
    """An item's trend, and a user's last event: one bias and one user differ."""
    rec = Recommender(dense_bundle, "cpu")
    first = rec.write_vectors(tmp_path / "store", "all")
    again = Recommender(dense_bundle, "cpu").write_vectors(tmp_path / "store", "all")
    assert again.generation == first.generation == 1
    trend = dense_bundle.model.side.trend.copy()
    trend[5] += 1.0
    model = replace(dense_bundle.model, side=replace(dense_bundle.model.side, trend=trend))
    events = dense_bundle.events
    last = events.index[events["user_id"] == "u-ada"][-1]
    events = events.drop(index=last).reset_index(drop=True)
    newer = replace(dense_bundle, model=model, events=events)
    second = Recommender(newer, "cpu").write_vectors(tmp_path / "store", "all")
    assert second.generation == 2
    assert written(second) == {"item": 1, "user": 1, "learned_user": 1}
    opened = EmbeddingStore.open(tmp_path / "store")
    assert opened.ids("item")[-1] == dense_bundle.items.ids([5])[0]
    assert opened.ids("user")[-1] == "u-ada"
    items = opened.vectors("item", newer.items.ids()).astype(np.float64)
    for user in ("u-ada", "0005"):
        found = items @ opened.vectors("user", [user])[0]
        np.testing.assert_allclose(found, dense_part(newer, user), atol=2e-6)


def without_item(bundle: Bundle, item: str) -> Bundle:
    """The dense channels of a bundle without one item, of which there is no event."""
    assert item not in set(bundle.events["item_id"])
    [place] = bundle.items.numbers([item])
    kept = np.delete(np.arange(len(bundle.items)), place)
    channels = []
    for channel in bundle.model.channels[-2:]:
        assert isinstance(channel.form, DenseFeatures)
        form = replace(
            channel.form, values=channel.form.values[kept], sources=channel.form.of_history[kept]
        )
        channels.append(replace(channel, form=form))
    side = bundle.model.side
    side = replace(
        side, popularity=side.popularity[kept], trend=side.trend[kept], cold=side.cold[kept]
    )
    heads = {name: head.of_channels([5, 6]) for name, head in bundle.model.heads.items()}
    return replace(
        bundle,
        model=FusedModel(tuple(channels), side, heads),
        items=Vocabulary.from_ids(bundle.items.ids(kept)),
        item_table=bundle.item_table.iloc[kept].reset_index(drop=True),
    )


def test_items_that_are_gone_are_deleted(dense_bundle: Bundle, tmp_path: Path) -> None:
    cold = set(dense_bundle.items.ids()) - set(dense_bundle.events["item_id"])
    gone = sorted(cold)[0]
    first = Recommender(dense_bundle, "cpu").write_vectors(tmp_path)
    rec = Recommender(without_item(dense_bundle, gone), "cpu")
    second = rec.write_vectors(tmp_path)
    assert second.generation == first.generation + 1
    assert second.groups["item"] == first.groups["item"] - 1
    assert written(second) == {"item": 0, "learned": 0, "learned_history": 0}
    with pytest.raises(UnknownIdError, match=gone):
        second.vectors("item", [gone])
    assert gone in first.ids("item")  # a store that is open keeps its generation


def test_users_not_asked_for_again_are_taken_out_and_own_groups_stay(
    rec: Recommender, store: EmbeddingStore, tmp_path: Path
) -> None:
    two = rec.write_vectors(tmp_path, users=pd.Series(["0005", "u-ada"]))
    assert two.ids("user").tolist() == ["0005", "u-ada"]
    users = ["u-ada", "0005"]
    np.testing.assert_allclose(two.vectors("user", users), store.vectors("user", users), rtol=1e-6)
    two.write("mine", ["x"], np.ones((1, 3), np.float32))
    one = rec.write_vectors(tmp_path, users=["u-ada"])
    assert one.ids("user").tolist() == ["u-ada"]
    none = rec.write_vectors(tmp_path)
    assert none.groups.keys() == {"item", "learned", "learned_history", "entity", "mine"}


def test_a_bundle_without_the_channel_takes_its_groups_out(
    rec: Recommender, tmp_path: Path
) -> None:
    """The item vectors are shorter then, and all are written."""
    bundle = rec.bundle
    heads = {name: head.of_channels(range(6)) for name, head in bundle.model.heads.items()}
    model = replace(bundle.model, channels=bundle.model.channels[:6], heads=heads)
    rec.write_vectors(tmp_path)
    store = Recommender(replace(bundle, model=model), "cpu").write_vectors(tmp_path)
    assert store.dims == {"item": 5}
    assert {path.name for path in tmp_path.iterdir()} == {"item-2.safetensors", "lock", "manifest"}


def test_what_is_stopped_on_the_way_leaves_the_old_vectors_of_every_group(
    dense_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Recommender(dense_bundle, "cpu").write_vectors(tmp_path)
    gone = sorted(set(dense_bundle.items.ids()) - set(dense_bundle.events["item_id"]))[0]
    whole = Group.replace

    def stopped(group: Group, *given: object) -> object:
        if group.name == "learned_history":
            raise KeyboardInterrupt
        return whole(group, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Group, "replace", stopped)
    newer = Recommender(without_item(dense_bundle, gone), "cpu")
    with pytest.raises(KeyboardInterrupt):
        newer.write_vectors(tmp_path)
    opened = EmbeddingStore.open(tmp_path)
    assert opened.manifest == old.manifest
    monkeypatch.undo()
    assert newer.write_vectors(tmp_path).generation == 2


# What is refused


def test_users_are_named_rightly(rec: Recommender, tmp_path: Path) -> None:
    with pytest.raises(UnknownIdError, match="'nobody'"):
        rec.write_vectors(tmp_path / "store", ["u-ada", "nobody"])
    with pytest.raises(ConfigError, match="found the single string 'u-ada'; allowed: a list of"):
        rec.write_vectors(tmp_path / "store", "u-ada")  # type: ignore[arg-type]
    assert not (tmp_path / "store").exists()
    with pytest.raises(DataError, match="'u-ada' again"):
        rec.write_vectors(tmp_path / "store", ["u-ada", "u-ada"])


def test_a_channel_that_weighs_in_other_lists_has_its_groups_alone(
    dense_bundle: Bundle, tmp_path: Path
) -> None:
    """No dense channel weighs in lists of new products; in the others it does."""
    model = dense_bundle.model
    sparse = FusionWeights.single(len(model.channels), 0)
    heads = {**model.heads, "new": sparse}
    rec = Recommender(replace(dense_bundle, model=replace(model, heads=heads)), "cpu")
    store = rec.write_vectors(tmp_path, ["0005"])
    assert store.groups.keys() == {"learned", "learned_history", "learned_user", "entity"}
    store = rec.write_vectors(tmp_path, ["0005"], repeats="allow")
    assert store.groups["item"] == len(dense_bundle.items)
    assert (store.groups["user"], store.groups["learned_user"]) == (1, 1)


def test_a_model_without_dense_channels_has_no_vectors(
    sparse_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="found no dense channel, only linear, directed, gra"):
        Recommender(sparse_bundle, "cpu").write_vectors(tmp_path / "store")
    assert not (tmp_path / "store").exists()


# From the bundle on disk, on the command line


def test_the_command_writes_what_the_loaded_bundle_has(
    dense_bundle: Bundle, store: EmbeddingStore, tmp_path: Path
) -> None:
    dense_bundle.save(tmp_path / "models")
    words = ["vectors", str(tmp_path / "models"), "--out", str(tmp_path / "store")]
    done = CliRunner().invoke(app, [*words, "--all-users", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "store": str(tmp_path / "store"),
        "generation": 1,
        "groups": {
            name: {"vectors": n, "dim": store.dims[name]} for name, n in store.groups.items()
        },
        "channels": {"embedding": 4, "learned": 16},
        "channels_without_vectors": ["linear", "directed", "graph", "text", "repeat"],
    }
    opened = EmbeddingStore.open(tmp_path / "store")
    for group in store.groups:
        ids = store.ids(group)
        assert opened.vectors(group, ids).tobytes() == store.vectors(group, ids).tobytes()
    (tmp_path / "users.txt").write_text("0005\nu-ada\n0005\n")
    done = CliRunner().invoke(app, [*words, "--users", str(tmp_path / "users.txt")])
    assert done.exit_code == 0, done.output
    assert "user · item: embedding + learned + bias. Not in it: linear, directed" in done.stdout
    two = EmbeddingStore.open(tmp_path / "store")
    assert two.groups["user"] == 2
    done = CliRunner().invoke(app, [*words, "--all-users", "--repeats", "allow", "--json"])
    assert json.loads(done.stdout)["generation"] == 3
    before, after = (of.vectors("item", ["brook-bottle"]) for of in (two, two.refresh()))
    assert (before[:, :-1] != after[:, :-1]).all()


def test_wrong_usage_of_the_command(sparse_bundle: Bundle, tmp_path: Path) -> None:
    sparse_bundle.save(tmp_path / "models")
    (tmp_path / "users.txt").write_text("0005\n")
    words = ["vectors", str(tmp_path / "models"), "--out", str(tmp_path / "store")]
    both = [*words, "--users", str(tmp_path / "users.txt"), "--all-users"]
    assert CliRunner().invoke(app, both).exit_code == 2
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 1
    assert "found no dense channel" in refused.stderr
    assert not (tmp_path / "store").exists()
