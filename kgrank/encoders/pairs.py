"""Click and purchase: how probable it is that a user takes a product, by what both say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kgrank.encoders.examples import Catalogue, Ints, Moments
from kgrank.encoders.next_product import JUDGED, HistoryBatches, HistoryRule
from kgrank.encoders.objectives import Batch
from kgrank.encoders.tuned import TunedText

SMOOTHED = 0.75  # power of the popularity that negatives are drawn by


class PairHead(nn.Module):
    """log odds of a user and a product: linear in u, v and u ⊙ v.

    It begins as ten times the cosine, less what makes the mean one in `negatives` + 1.
    """

    def __init__(self, dim: int, negatives: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * dim, 1)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.weight[0, 2 * dim :] = 10.0
            self.linear.bias.fill_(-float(np.log(negatives)) - 3.0)

    def forward(self, users: Tensor, products: Tensor) -> Tensor:
        """(n × dim) twice → (n) log odds."""
        pairs = torch.cat([users, products, users * products], dim=1)
        return cast(Tensor, self.linear(pairs)[:, 0])


class Pairs:
    """Click or purchase: whether a product came next to a history, against products drawn.

    For each product that came, `negatives` others are drawn by (how often each came in train)^0.75;
    one that the user had met, or that is the product itself, does not count. So a probability is
    that of the product beside so many drawn ones; what is higher is more probable.
    """

    def __init__(
        self,
        model: TunedText,
        head: PairHead,
        catalogue: Catalogue,
        train: Moments,
        valid: Moments,
        rule: HistoryRule,
        *,
        negatives: int,
        encoded: int,
        most_rows: int,
        seed: int,
    ) -> None:
        self.examples = HistoryBatches(
            model, catalogue, train, rule, encoded=encoded, most_rows=most_rows
        )
        self.model, self.head, self.rule, self.negatives = model, head, rule, negatives
        smoothed = self.examples.popularity**SMOOTHED
        self.drawn_by = np.cumsum(smoothed / smoothed.sum())
        rng = np.random.default_rng((seed, 1))
        some = valid.take(np.sort(rng.permutation(len(valid))[:JUDGED]))
        as_texts = self.examples.as_texts
        self.valid_history = as_texts(catalogue, some.kept(rule.window))
        targets = catalogue.of_item[some.targets]
        self.valid_pairs, self.valid_real = self._pairs(targets, as_texts(catalogue, some.met), rng)

    def batches(self, seed: tuple[int, ...]) -> list[Batch]:
        """See `Objective`."""
        return self.examples.batches(seed)

    def _pairs(
        self, targets: Ints, met: Ints, rng: np.random.Generator
    ) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """(n × 1 + negatives) products, that which came first, and which of them count."""
        places = np.searchsorted(self.drawn_by, rng.random((len(targets), self.negatives)))
        drawn = np.minimum(places, len(self.drawn_by) - 1)
        known = np.concatenate([met, targets[:, None]], axis=1)
        real = ~(drawn[:, :, None] == known[:, None, :]).any(axis=2)
        ones = np.ones((len(targets), 1), bool)
        return np.concatenate([targets[:, None], drawn], 1), np.concatenate([ones, real], 1)

    def loss(self, batch: Batch, share: slice) -> Tensor:
        """See `Objective`."""
        examples, rng = self.examples, np.random.default_rng(batch.seed)
        vectors = self.model.everything(batch.fresh, rng)
        history = self.rule.changed(examples.history[batch.rows], rng)
        pairs, real = self._pairs(examples.targets[batch.rows], examples.met[batch.rows], rng)
        weights = real * batch.weights[:, None]
        odds = self._odds(vectors, history[share], pairs[share])
        wanted = torch.zeros_like(odds)
        wanted[:, 0] = 1.0
        losses = nn.functional.binary_cross_entropy_with_logits(odds, wanted, reduction="none")
        counted = torch.from_numpy((weights / weights.sum())[share]).to(odds.device)
        return (losses * counted).sum()

    def _odds(self, vectors: Tensor, history: Ints, pairs: Ints) -> Tensor:
        """Log odds of each pair, (n × 1 + negatives)."""
        users = self.rule.users(vectors, history)
        at = torch.from_numpy(pairs).to(vectors.device)
        n_pairs = pairs.shape[1]
        products = vectors[at.reshape(-1)]
        odds = self.head(users.repeat_interleave(n_pairs, dim=0), products)
        return cast(Tensor, odds).reshape(-1, n_pairs)

    def figures(self) -> dict[str, float]:
        """AUC and log loss over the pairs of valid, whose draws never change."""
        from sklearn.metrics import log_loss, roc_auc_score

        with torch.no_grad():
            odds = self._odds(self.model.table, self.valid_history, self.valid_pairs)
        chance = torch.sigmoid(odds).cpu().numpy()[self.valid_real]
        wanted = np.zeros(self.valid_pairs.shape, bool)
        wanted[:, 0] = True
        wanted = wanted[self.valid_real]
        return {
            "auc": float(roc_auc_score(wanted, chance)),
            "log_loss": float(log_loss(wanted, chance)),
        }

    def score(self, figures: Mapping[str, float]) -> float:
        """AUC."""
        return figures["auc"]
