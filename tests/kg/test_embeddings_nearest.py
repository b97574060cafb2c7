"""The nearest of a group: the right ones, in a stated order, exactly or nearly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kgrank.errors import ConfigError, DataError, ModelError, StoreError, UnknownIdError
from kgrank.kg import ann, nearest
from kgrank.kg.embeddings import EmbeddingStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "vectors"


@pytest.fixture
def plane(folder: Path) -> EmbeddingStore:
    """Five vectors of the plane; c is replaced and moves to the end, x is deleted.

    numbers  0        1        2        3
    ids      a        b        d        c
    vectors  (1, 0)   (0, 1)   (2, 2)   (3, -1)
    """
    store = EmbeddingStore.create(folder, dim=2)
    vectors = np.array([[1, 0], [0, 1], [9, 9], [8, 8], [2, 2]], np.float32)
    store = store.write("item", ["a", "b", "c", "x", "d"], vectors)
    return store.write("item", ["c"], np.array([[3, -1]], np.float32)).delete("item", ["x"])


def clustered(n: int, dim: int = 32, seed: int = 0) -> np.ndarray:
    """(n × dim) float32 round n / 50 centres, of lengths that differ (log-normal)."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(max(1, n // 50), dim))
    vectors = centres[rng.integers(0, len(centres), n)] + 0.5 * rng.normal(size=(n, dim))
    return (vectors * rng.lognormal(0, 0.3, size=(n, 1))).astype(np.float32)


def reference(vectors: np.ndarray, queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and scores by one product in float64, rounded, and a stable sort."""
    scores = (queries.astype(np.float64) @ vectors.T.astype(np.float64)).astype(np.float32)
    numbers = np.argsort(-scores, axis=1, kind="stable")[:, :n]
    return numbers, np.take_along_axis(scores, numbers, axis=1)


def test_the_nearest_of_the_plane_worked_by_hand(plane):
    """(1, 2): a 1, b 2, d 6, c 1. (-1, 0): a −1, b 0, d −2, c −3."""
    found = plane.nearest("item", np.array([[1, 2], [-1, 0]], np.float32), n=3)
    assert found.ids.tolist() == [["d", "b", "a"], ["b", "a", "d"]]
    assert found.numbers.tolist() == [[2, 1, 0], [1, 0, 2]]
    assert found.scores.tolist() == [[6, 2, 1], [0, -1, -2]]
    assert (found.scores.dtype, found.numbers.dtype) == (np.float32, np.int64)
    everything = plane.nearest("item", np.array([[1, 2]], np.float32), n=99)
    assert everything.ids.tolist() == [["d", "b", "a", "c"]]  # a and c both 1: a comes first
    assert plane.ids("item")[everything.numbers].tolist() == everything.ids.tolist()


def test_equal_scores_order_by_number_wherever_they_stand(folder, monkeypatch):
    """A product in float32 gives equal vectors different scores in different places of a block."""
    monkeypatch.setattr(nearest, "ROWS", 64)
    vectors = np.tile(clustered(3, dim=100), (67, 1))  # 0, 1, 2, 0, 1, 2, …
    ids = [f"i{number}" for number in range(201)]
    store = EmbeddingStore.create(folder, dim=100)
    for start in (0, 77, 150):
        end = {0: 77, 77: 150, 150: 201}[start]
        store = store.write("item", ids[start:end], vectors[start:end])
    for n_queries in (1, 2, 7, 64):
        queries = clustered(n_queries, dim=100, seed=2)
        best = np.argmax(queries.astype(np.float64) @ vectors[:3].T, axis=1)
        for n in (1, 10, 67):
            found = store.nearest("item", queries, n=n)
            assert found.numbers.tolist() == [[k + 3 * j for j in range(n)] for k in best]
            assert all(len(set(scores)) == 1 for scores in found.scores.tolist())


@pytest.mark.parametrize("order", ["as it comes", "rising", "falling"])
@pytest.mark.parametrize("n", [1, 20, 300])
def test_the_exact_search_finds_what_one_product_finds(folder, monkeypatch, n, order):
    monkeypatch.setattr(nearest, "ROWS", 128)
    monkeypatch.setattr(nearest, "QUERIES", 16)
    monkeypatch.setattr(nearest, "PAIRS_BYTES", 32 * 16 * 100)
    vectors, queries = clustered(1_000), clustered(50, seed=2)
    if order != "as it comes":  # every block holds better rows, or none, for the first query
        rising = np.argsort(vectors @ queries[0])
        vectors = vectors[rising if order == "rising" else rising[::-1]]
    ids = np.array([f"i{number}" for number in range(1_000)])
    store = EmbeddingStore.create(folder, dim=32).write("item", ids[:700], vectors[:700])
    store = store.write("item", ids[700:], vectors[700:])
    store = store.write("item", ids[100:150], vectors[:50]).delete("item", ids[300:500])
    now = store.vectors("item", store.ids("item"))
    assert len(now) == 800
    numbers, scores = reference(now, queries, n)
    found = store.nearest("item", queries, n=n)
    np.testing.assert_array_equal(found.numbers, numbers)
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.ids, store.ids("item")[numbers])
    one = store.nearest("item", queries[7:8], n=n)  # a query does not depend on its batch
    assert (one.numbers[0].tobytes(), one.scores[0].tobytes()) == (
        found.numbers[7].tobytes(),
        found.scores[7].tobytes(),
    )
    merged = store.compact().nearest("item", queries, n=n)
    np.testing.assert_array_equal(merged.numbers, numbers)
    np.testing.assert_array_equal(merged.scores, scores)


@pytest.mark.parametrize("step", [0.0, 2.0**-25])
def test_a_product_that_is_off_by_its_roundings_loses_nothing(folder, monkeypatch, step):
    """Float32 products are moved by almost 2 · 32 roundings of the longest, up or down.

    The vectors are three, over and over: each copy the same as before, or a trifle longer.
    """
    product, rng = torch.mm, np.random.default_rng(0)
    vectors = (
        np.tile(clustered(3), (100, 1)) * (1 + step * np.arange(300, dtype=np.float32))[:, None]
    )
    queries = clustered(20, seed=2)
    longest = np.linalg.norm(vectors, axis=1).max()
    bound = 0.9 * 32 * 2.0**-23 * longest * np.linalg.norm(queries, axis=1)

    def noisy(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        product(a, b, out=out)
        moved = rng.choice([-1, 1], size=out.shape) * bound[:, None]
        out += torch.from_numpy(moved.astype(np.float32))

    monkeypatch.setattr(torch, "mm", noisy)
    monkeypatch.setattr(nearest, "ROWS", 64)
    ids = [f"i{number}" for number in range(300)]
    store = EmbeddingStore.create(folder, dim=32).write("item", ids, vectors)
    found = store.nearest("item", queries, n=15)
    np.testing.assert_array_equal(found.numbers, reference(vectors, queries, 15)[0])


def test_products_at_the_end_of_float32_are_ordered_too(folder):
    """Scores are small multiples of the smallest number there is, so that many are equal."""
    vectors, queries = clustered(500, dim=8) * 1e-23, clustered(30, dim=8, seed=2) * 1e-22
    ids = [f"i{number}" for number in range(500)]
    store = EmbeddingStore.create(folder, dim=8).write("item", ids, vectors)
    found = store.nearest("item", queries, n=20)
    np.testing.assert_array_equal(found.numbers, reference(vectors, queries, 20)[0])


def test_zeros_tiny_and_huge_numbers_have_their_place(folder):
    """Zeros score 0. 1e-30 · 1e-30 is 0 in float32. 1e30 · 1e30 would not be a float32."""
    vectors = np.array([[0, 0], [1e-30, 0], [1, 0], [-1, 0]], np.float32)
    store = EmbeddingStore.create(folder, dim=2).write("item", list("abcd"), vectors)
    found = store.nearest("item", np.array([[0, 0], [1e-30, 0], [1, 0]], np.float32), n=4)
    assert found.ids.tolist() == [[*"abcd"], [*"cabd"], [*"cbad"]]
    assert found.scores[0].tolist() == [0, 0, 0, 0]
    with pytest.raises(ModelError, match=r"'item': found vectors of length 3e\+38 and 1; all"):
        store.nearest("item", np.array([[3e38, 0]], np.float32))
    store = store.write("item", ["e"], np.array([[3e38, 0]], np.float32))
    with pytest.raises(ModelError, match=r"found vectors of length 3e\+38 and 3e\+38; allowed"):
        store.nearest("item", np.array([[3e38, 0]], np.float32))


def test_of_nothing_there_is_nothing(plane):
    assert plane.nearest("item", np.empty((0, 2), np.float32)).ids.shape == (0, 4)
    emptied = plane.delete("item", ["a", "b", "c", "d"])
    found = emptied.nearest("item", np.ones((3, 2), np.float32))
    assert (found.ids.shape, found.numbers.shape, found.scores.shape) == ((3, 0),) * 3


def test_faulty_queries_are_refused(plane):
    for queries, message in (
        (np.ones(2, np.float32), r"vectors: found the shape \(2,\); allowed: \(n, 2\)"),
        (np.ones((1, 3), np.float32), r"found the shape \(1, 3\)"),
        (np.ones((1, 2)), "found float64; allowed: float32"),
        (np.array([[1, np.nan]], np.float32), "row 1: found a value that is not finite"),
    ):
        with pytest.raises(DataError, match=message):
            plane.nearest("item", queries)
    for n in (0, -1, 2.5, "3", True, None):
        with pytest.raises(ConfigError, match=f"n: found {n!r}; allowed: a whole number, 1 or mor"):
            plane.nearest("item", np.ones((1, 2), np.float32), n=n)
    found = plane.nearest("item", np.ones((1, 2), np.float32), n=np.int64(2))
    assert found.ids.shape == (1, 2)
    with pytest.raises(UnknownIdError, match="found the group 'items'"):
        plane.nearest("items", np.ones((1, 2), np.float32))


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """5,000 clustered vectors, some replaced and deleted, and then an index of them."""
    ids = np.array([f"i{number}" for number in range(5_000)])
    store = EmbeddingStore.create(tmp_path_factory.mktemp("indexed"), dim=32)
    store = store.write("item", ids, clustered(5_000) * 1e6)  # beyond float16
    store = store.delete("item", ids[100:200]).write("item", ids[:50], clustered(50, seed=3) * 1e6)
    return store.build_index("item")


def test_the_index_finds_nine_of_ten_and_scores_them_exactly(indexed, monkeypatch):
    queries = clustered(200, seed=2)
    exact = indexed.nearest("item", queries, n=10, exact=True)
    compare_all, compared = nearest._exact, []
    monkeypatch.setattr(
        nearest, "_exact", lambda group, q, n: compared.append(len(q)) or compare_all(group, q, n)
    )
    found = indexed.nearest("item", queries, n=10, exact=False)
    assert sum(compared) == 0
    pairs = list(zip(exact.ids, found.ids, strict=True))
    assert np.mean([len({*a} & {*b}) for a, b in pairs]) / 10 >= 0.9
    vectors = indexed.vectors("item", found.ids.ravel()).reshape(200, 10, 32).astype(np.float64)
    scores = np.einsum("qnd,qd->qn", vectors, queries.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(found.scores, scores)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert all(len({*ids}) == 10 for ids in found.ids)
    np.testing.assert_array_equal(indexed.ids("item")[found.numbers], found.ids)


def test_what_the_index_cannot_answer_is_answered_exactly(indexed):
    """A query of zeros has no nearest, and no index gives nearly all vectors."""
    queries = np.concatenate([np.zeros((1, 32), np.float32), clustered(1, seed=2)])
    for n in (3, 4_900):
        exact = indexed.nearest("item", queries, n=n, exact=True)
        found = indexed.nearest("item", queries, n=n, exact=False)
        np.testing.assert_array_equal(found.numbers[0], exact.numbers[0])
        assert found.numbers.shape == (2, n)
    np.testing.assert_array_equal(found.numbers, exact.numbers)


def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries each search through an index was for."""
    done: list[int] = []
    search = ann.Index.search
    monkeypatch.setattr(
        ann.Index, "search", lambda s, q, depth: done.append(len(q)) or search(s, q, depth)
    )
    return done


def test_the_index_is_used_above_a_million_vectors_unless_told_otherwise(indexed, monkeypatch):
    done = searches(monkeypatch)
    assert nearest.APPROXIMATE_ABOVE == 1_000_000
    queries = clustered(2, seed=2)
    indexed.nearest("item", queries)
    indexed.nearest("item", queries, exact=True)
    assert done == []
    monkeypatch.setattr(nearest, "APPROXIMATE_ABOVE", 4_899)
    indexed.nearest("item", queries)
    assert done == [2]
    indexed.nearest("item", queries, exact=True)
    monkeypatch.setattr(nearest, "APPROXIMATE_ABOVE", 4_900)
    indexed.nearest("item", queries)
    monkeypatch.setattr(nearest, "APPROXIMATE_ABOVE", 0)
    monkeypatch.setattr(ann, "find_spec", lambda name: None)
    indexed.nearest("item", queries)
    assert done == [2]


def test_an_index_goes_with_a_write_and_stays_with_a_compaction(plane, folder, monkeypatch):
    done = searches(monkeypatch)
    query = np.array([[1, 2]], np.float32)
    with pytest.raises(ModelError, match="'item': found no index; allowed: one of these vectors"):
        plane.nearest("item", query, exact=False)
    built = plane.build_index("item")
    merged = built.compact()
    other = merged.write("user", ["u"], query)
    for store in (built, merged, other, EmbeddingStore.open(folder)):
        found = store.nearest("item", query, n=2, exact=False)
        assert found.ids.tolist() == [["d", "b"]]
        store.nearest("item", query, n=2)
    assert done == [1] * 4
    for stale in (other.write("item", ["e"], query), built.delete("item", ["e"])):
        assert not list(folder.glob("*.faiss"))
        with pytest.raises(ModelError, match="found no index"):
            stale.nearest("item", query, exact=False)
    monkeypatch.setattr(nearest, "APPROXIMATE_ABOVE", 0)
    assert stale.nearest("item", query, n=1).ids.tolist() == [["d"]]
    assert done == [1] * 4


def test_a_damaged_index_is_refused_before_faiss_sees_it(plane, folder):
    built = plane.build_index("item")
    path = folder / "item-4.faiss"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"{path}: found other bytes"):
        built.nearest("item", np.ones((1, 2), np.float32), exact=False)
    with pytest.raises(StoreError, match=f"{path}: found other bytes"):
        built.verify()
    path.unlink()
    with pytest.raises(StoreError, match=f"{path}: found no such file"):
        EmbeddingStore.open(folder)


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf, 3e38])
def test_a_row_that_damage_made_endless_is_named_not_left_out(plane, folder, damage):
    """d = (2, 2) is row 4 of the first file; whichever number of rows is asked for."""
    built = plane.build_index("item")
    path = folder / "item-1.safetensors"
    content = path.read_bytes()
    at = content.index(np.array([2, 2], np.float32).tobytes())
    path.write_bytes(content[:at] + np.float32(damage).tobytes() + content[at + 4 :])
    queries = np.array([[0, 0], [2, 1], [1, 3]], np.float32)
    for exact in (True, False):
        for n in (1, 3, 4):
            with pytest.raises(StoreError, match=f"{path}: found a vector that is not finite; all"):
                built.nearest("item", queries, n=n, exact=exact)


def test_without_vectors_or_faiss_no_index_is_built(plane, folder, monkeypatch):
    emptied = plane.write("user", [], np.empty((0, 2), np.float32))
    with pytest.raises(ModelError, match="'user': found no vectors; allowed: some"):
        emptied.build_index("user")
    monkeypatch.setattr(ann, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r'found no faiss.*pip install "kgrank\[ann\]"'):
        plane.build_index("item")
    assert emptied.refresh().generation == emptied.generation
    assert not list(folder.glob("*.faiss"))
