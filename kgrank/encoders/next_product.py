"""History to next product: what a text encoder is fine-tuned for above all.

The vectors of most products come from the encoder's table (`kgrank.encoders.tuned`): a batch is a
few texts that are encoded anew, with all moments in which they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from kgrank.encoders.augmenting import dropped_events, joined_histories
from kgrank.encoders.examples import Catalogue, Ints, Moments
from kgrank.encoders.objectives import Batch
from kgrank.encoders.tuned import TunedText
from kgrank.encoders.whitening import whiten

FULL_SOFTMAX = 20_000  # candidates; of more, those that come in the batch
JUDGED = 2_000  # moments of valid, at most


@dataclass(frozen=True)
class HistoryRule:
    """How a history is read.

    Attributes:
        window: events of it.
        power: an event weighs (1 + age)^-power, age 0 being the newest.
        dropped: probability that an event is dropped while the encoder learns.
        joined: how often another user's history follows as an older one while it learns.
    """

    window: int = 10
    power: float = 1.0
    dropped: float = 0.0
    joined: float = 0.0

    def changed(self, history: Ints, rng: np.random.Generator) -> Ints:
        """(n × window) histories as they are learned from."""
        if self.joined:
            history = joined_histories(history, self.joined, rng)
        return dropped_events(history, self.dropped, rng) if self.dropped else history

    def users(self, vectors: Tensor, history: Ints) -> Tensor:
        """Vectors of length 1 of users, (n × dim).

        Args:
            vectors: (n_texts × dim) what products say.
            history: (n × window) text numbers, newest first; -1 = none.
        """
        age = np.arange(history.shape[1], dtype=np.float32)
        weights = ((1.0 + age) ** -self.power * (history >= 0)).astype(np.float32)
        summed = nn.functional.embedding_bag(
            torch.from_numpy(np.maximum(history, 0)).to(vectors.device),
            vectors,
            mode="sum",
            per_sample_weights=torch.from_numpy(weights).to(vectors.device),
        )
        return nn.functional.normalize(summed, dim=1)


class HistoryBatches:
    """Moments as text numbers, and the batches that encode few texts and use many moments.

    A batch holds the moments in which its texts stand, and some of all others, where its texts are
    what did not come; each stands for as many as its kind has. Without the others a text would be
    told more often that it came than that it did not.
    """

    def __init__(
        self,
        model: TunedText,
        catalogue: Catalogue,
        train: Moments,
        rule: HistoryRule,
        *,
        encoded: int,
        most_rows: int,
    ) -> None:
        self.model, self.rule, self.encoded, self.most_rows = model, rule, encoded, most_rows
        self.history = self.as_texts(catalogue, train.kept(rule.window))
        self.met = self.as_texts(catalogue, train.met)
        self.targets = catalogue.of_item[train.targets]
        counts = np.bincount(self.targets, minlength=model.n_table)
        self.popularity = counts / max(1, counts.sum())
        rows = np.arange(len(train))
        touched = np.concatenate([self.targets, self.history.ravel()])
        by = np.concatenate([rows, np.repeat(rows, self.history.shape[1])])
        ones = np.ones(int((touched >= 0).sum()), np.int8)
        shape = (model.n_table, len(train))
        self.touching = sp.csr_matrix((ones, (touched[touched >= 0], by[touched >= 0])), shape)
        self.learned = np.flatnonzero(np.diff(self.touching.indptr))  # texts that moments hold

    @staticmethod
    def as_texts(catalogue: Catalogue, items: Ints) -> Ints:
        """The text number of each product; -1 stays."""
        return np.where(items >= 0, catalogue.of_item[items], -1)

    def batches(self, seed: tuple[int, ...]) -> list[Batch]:
        """Those of an epoch, in which each text is encoded once, or each moment used once."""
        rng = np.random.default_rng(seed)
        if self.model.raw is not None:  # a projection alone: all vectors are made each time
            rows = rng.permutation(len(self.targets))
            parts = np.split(rows, range(self.most_rows, len(rows), self.most_rows))
            return [Batch.whole(part, (*seed, n)) for n, part in enumerate(parts)]
        texts = rng.permutation(self.learned)
        found = []
        for number, start in enumerate(range(0, len(texts), self.encoded)):
            fresh = texts[start : start + self.encoded]
            inside = np.unique(self.touching[fresh].indices).astype(np.int64)
            outside = np.setdiff1d(np.arange(len(self.targets)), inside, assume_unique=True)
            most = max(1, min(len(inside), self.most_rows * 3 // 4))
            kept = [
                (of, rng.choice(of, min(n, len(of)), replace=False))
                for of, n in ((inside, most), (outside, self.most_rows - most))
            ]
            weights = [np.full(len(some), len(of) / max(1, len(some))) for of, some in kept]
            total = np.concatenate(weights)
            rows = np.concatenate([some for _, some in kept])
            weight = (total / total.sum()).astype(np.float32)
            found.append(Batch(rows, weight, fresh, (*seed, number)))
        return found


class NextProduct:
    """What comes next: a softmax over products of the cosine with the user's vector.

    −log softmax(⟨u, v_i⟩ / τ + α·log p_i) of the product that came, over all products that came in
    train, but for those the user had met. p is how often each came, so that with α = 1 the vectors
    need not say how popular a product is (Menon et al. 2021). Beyond `FULL_SOFTMAX` products the
    candidates are those of the batch, corrected by how probable they are there (logQ: Bengio and
    Senécal 2008; Yi et al. 2019).
    """

    def __init__(
        self,
        model: TunedText,
        catalogue: Catalogue,
        train: Moments,
        valid: Moments,
        rule: HistoryRule,
        *,
        temperature: float,
        popularity: float,
        encoded: int,
        most_rows: int,
        shrinkage: float,
        seed: int,
    ) -> None:
        self.examples = HistoryBatches(
            model, catalogue, train, rule, encoded=encoded, most_rows=most_rows
        )
        self.model, self.catalogue, self.rule = model, catalogue, rule
        self.temperature, self.alpha, self.shrinkage = temperature, popularity, shrinkage
        self.candidates = np.flatnonzero(self.examples.popularity)
        drawn = np.random.default_rng(seed).permutation(len(valid))[:JUDGED]
        self.valid = valid.take(np.sort(drawn))

    def batches(self, seed: tuple[int, ...]) -> list[Batch]:
        """See `Objective`."""
        return self.examples.batches(seed)

    def loss(self, batch: Batch, share: slice) -> Tensor:
        """See `Objective`."""
        examples, model, rng = self.examples, self.model, np.random.default_rng(batch.seed)
        vectors = model.everything(batch.fresh, rng)
        history = self.rule.changed(examples.history[batch.rows], rng)
        rows = batch.rows[share]
        users = self.rule.users(vectors, history[share])
        candidates, prior = self._candidates(batch)
        at = vectors.device
        scores = users @ vectors[torch.from_numpy(candidates).to(at)].T / self.temperature
        scores = scores + torch.from_numpy(prior).to(at)
        place = np.full(model.n_table + 1, len(candidates))  # the last for -1
        place[candidates] = np.arange(len(candidates))
        met = torch.from_numpy(place[examples.met[rows]]).to(at)
        wanted = torch.from_numpy(place[examples.targets[rows]]).to(at)
        marks = torch.zeros(len(rows), len(candidates) + 1, dtype=torch.bool, device=at)
        marks.scatter_(1, met, True).scatter_(1, wanted[:, None], False)
        scores = scores.masked_fill(marks[:, :-1], -torch.inf)
        losses = nn.functional.cross_entropy(scores, wanted, reduction="none")
        return (losses * torch.from_numpy(batch.weights[share]).to(at)).sum()

    def _candidates(self, batch: Batch) -> tuple[Ints, npt.NDArray[np.float32]]:
        """Text numbers that are ranked, and what is added to their scores."""
        popularity = self.examples.popularity
        if len(self.candidates) <= FULL_SOFTMAX:
            prior = self.alpha * np.log(popularity[self.candidates])
            return self.candidates, prior.astype(np.float32)
        there = np.unique(self.examples.targets[batch.rows])
        share = popularity[there]
        inclusion = -np.expm1(len(batch.rows) * np.log1p(-share))
        prior = self.alpha * np.log(share) - np.log(inclusion)
        return there, prior.astype(np.float32)

    def figures(self) -> dict[str, float]:
        """Recall and NDCG at 10 over all products, by the vectors as a fit would take them."""
        table = self.model.table.cpu().numpy()
        plain = self._ranked(table)
        whitened = self._ranked(whiten(table, shrinkage=self.shrinkage).apply(table))
        return {
            "recall@10": whitened[0],
            "ndcg@10": whitened[1],
            "recall@10 not whitened": plain[0],
            "ndcg@10 not whitened": plain[1],
        }

    def _ranked(self, table: npt.NDArray[np.float32]) -> tuple[float, float]:
        of_item, valid = self.catalogue.of_item, self.valid
        if not len(valid):
            return 0.0, 0.0
        history = self.examples.as_texts(self.catalogue, valid.kept(self.rule.window))
        texts = torch.from_numpy(table)
        items = torch.where(torch.from_numpy(of_item < 0)[:, None], 0.0, texts[of_item])
        hits = []
        for start in range(0, len(valid), 500):
            some = slice(start, start + 500)
            scores = self.rule.users(texts, history[some]) @ items.T
            met, target = (torch.from_numpy(a[some]) for a in (valid.met, valid.targets))
            rows = torch.arange(len(target))
            own = scores[rows, target].clone()
            row, column = torch.nonzero(met >= 0, as_tuple=True)
            scores[row, met[row, column]] = -torch.inf
            scores[rows, target] = own
            before = torch.arange(scores.shape[1]) < target[:, None]  # equal ones: by number
            ahead = (scores > own[:, None]) | ((scores == own[:, None]) & before)
            hits.append(ahead.sum(1).numpy())
        rank = np.concatenate(hits)
        found = rank < 10
        return float(found.mean()), float((found / np.log2(rank + 2.0)).mean())

    def score(self, figures: Mapping[str, float]) -> float:
        """NDCG@10."""
        return figures["ndcg@10"]
