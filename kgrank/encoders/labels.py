"""Rating and sentiment: what a text such as a review says of how somebody liked a product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kgrank.encoders.examples import Ints, Labelled
from kgrank.encoders.objectives import Batch
from kgrank.encoders.tuned import TunedText


class _Labels:
    """Texts with labels, of which a batch reads `encoded`."""

    def __init__(
        self, model: TunedText, head: nn.Linear, train: Labelled, valid: Labelled, encoded: int
    ) -> None:
        self.model, self.head, self.encoded = model, head, encoded
        place = {text: number for number, text in enumerate(model.texts)}
        self.train, self.valid = (
            np.array([place[text] for text in part.texts], np.int64) for part in (train, valid)
        )
        self.train_labels, self.valid_labels = train.labels, valid.labels

    def batches(self, seed: tuple[int, ...]) -> list[Batch]:
        """See `Objective`."""
        rows = np.random.default_rng(seed).permutation(len(self.train))
        parts = np.split(rows, range(self.encoded, len(rows), self.encoded))
        return [Batch.whole(part, (*seed, n)) for n, part in enumerate(parts)]

    def answers(self, texts: Ints, rng: np.random.Generator | None) -> Tensor:
        """What the head says of some texts, each distinct one encoded once: (n × outputs)."""
        distinct, of = np.unique(texts, return_inverse=True)
        vectors = self.model.vectors(distinct, rng)
        return cast(Tensor, self.head(vectors))[torch.from_numpy(of).to(vectors.device)]

    def valid_answers(self) -> npt.NDArray[np.float32]:
        """What the head says of valid, (n × outputs)."""
        found = []
        order = np.argsort([len(self.model.ids[text]) for text in self.valid], kind="stable")
        with torch.no_grad():
            for start in range(0, len(order), self.encoded):
                found.append(self.answers(self.valid[order[start : start + self.encoded]], None))
        answers = np.empty((len(order), self.head.out_features), np.float32)
        answers[order] = torch.cat(found).cpu().numpy()
        return answers


class Rating(_Labels):
    """The rating a text comes with: linear in its vector, by squares on the scale from 0 to 1."""

    def __init__(
        self,
        model: TunedText,
        head: nn.Linear,
        train: Labelled,
        valid: Labelled,
        *,
        encoded: int,
        scale: tuple[float, float],
    ) -> None:
        super().__init__(model, head, train, valid, encoded)
        self.low, self.range = scale[0], scale[1] - scale[0]
        with torch.no_grad():
            head.bias.fill_(float((train.labels.mean() - self.low) / self.range))

    def loss(self, batch: Batch, share: slice) -> Tensor:
        """See `Objective`."""
        rows = batch.rows[share]
        said = self.answers(self.train[rows], np.random.default_rng(batch.seed))[:, 0]
        wanted = torch.from_numpy((self.train_labels[rows] - self.low) / self.range)
        return ((said - wanted.to(said.device)) ** 2).sum() / len(batch.rows)

    def figures(self) -> dict[str, float]:
        """RMSE and mean absolute error, beside the RMSE of always saying train's mean."""
        said = self.low + self.range * np.clip(self.valid_answers()[:, 0], 0.0, 1.0)
        off, plain = said - self.valid_labels, self.valid_labels - self.train_labels.mean()
        return {
            "rmse": float(np.sqrt((off**2).mean())),
            "mae": float(np.abs(off).mean()),
            "rmse of the mean": float(np.sqrt((plain**2).mean())),
        }

    def score(self, figures: Mapping[str, float]) -> float:
        """1 − RMSE as a share of the scale."""
        return 1.0 - figures["rmse"] / self.range


class Sentiment(_Labels):
    """The class a text belongs to: a softmax, linear in its vector."""

    def loss(self, batch: Batch, share: slice) -> Tensor:
        """See `Objective`."""
        rows = batch.rows[share]
        said = self.answers(self.train[rows], np.random.default_rng(batch.seed))
        wanted = torch.from_numpy(self.train_labels[rows].astype(np.int64)).to(said.device)
        return nn.functional.cross_entropy(said, wanted, reduction="sum") / len(batch.rows)

    def figures(self) -> dict[str, float]:
        """Accuracy and macro F1 over the classes that valid holds."""
        from sklearn.metrics import f1_score

        said, wanted = self.valid_answers().argmax(axis=1), self.valid_labels.astype(np.int64)
        labels = np.unique(wanted)
        macro = f1_score(wanted, said, labels=labels, average="macro", zero_division=0.0)
        return {"accuracy": float((said == wanted).mean()), "macro_f1": float(macro)}

    def score(self, figures: Mapping[str, float]) -> float:
        """Macro F1."""
        return figures["macro_f1"]
