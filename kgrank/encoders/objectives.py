"""One encoder and what it is fine-tuned for: several objectives, whose batches are mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from kgrank.encoders.examples import Floats, Ints
from kgrank.encoders.tuned import TunedText


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows of an objective.

    Attributes:
        rows: (n) int64.
        weights: (n) float32 how many rows of the whole each stands for, over the sum of these.
        fresh: (m) int64 texts that are encoded anew; None = all.
        seed: what the step's draws come from.
    """

    rows: Ints
    weights: Floats
    fresh: Ints | None
    seed: tuple[int, ...]

    @classmethod
    def whole(cls, rows: Ints, seed: tuple[int, ...]) -> Batch:
        """Rows that count alike, of which all texts are encoded."""
        return cls(rows, np.full(len(rows), 1 / len(rows), np.float32), None, seed)


class Objective(Protocol):
    """What one task asks of the encoder."""

    def batches(self, seed: tuple[int, ...]) -> list[Batch]:
        """Those of an epoch, as many in every one."""

    def loss(self, batch: Batch, share: slice) -> Tensor:
        """The loss of the rows batch.rows[share], each times its weight."""

    def figures(self) -> dict[str, float]:
        """Metrics on valid, with the table as it stands."""

    def score(self, figures: Mapping[str, float]) -> float:
        """One number of them, higher is better, 1 at the most."""


class Mixture:
    """What `kgrank.loop.Loop` trains: one encoder, several objectives, batches mixed by weight.

    An epoch holds all batches of the objective that weighs most (of equal ones, of that with the
    most batches), and of each other one so many that the batches stand to each other as the weights
    do, one at least; where it has fewer, they come again.
    """

    def __init__(
        self,
        model: TunedText,
        objectives: Mapping[str, tuple[float, Objective]],
        heads: nn.ModuleDict,
        seed: int,
    ) -> None:
        self.module = nn.ModuleDict({"model": model, "heads": heads})
        self.model, self.objectives, self.seed = model, objectives, seed

    def batches(self, epoch: int) -> Sequence[tuple[str, Batch]]:
        """Those of all objectives, in random order."""
        all_own = [
            (weight, name, objective.batches((self.seed, epoch, number)))
            for number, (name, (weight, objective)) in enumerate(self.objectives.items())
        ]
        most, length = max((weight, len(own)) for weight, _, own in all_own)
        found: list[tuple[str, Batch]] = []
        for weight, name, own in all_own:
            count = max(1, round(length * (weight / most)))
            found += [(name, own[place % len(own)]) for place in range(count)]
        order = np.random.default_rng((self.seed, epoch)).permutation(len(found))
        return [found[place] for place in order]

    @property
    def settled(self) -> bool:
        """Always."""
        return True

    def loss(self, batch: tuple[str, Batch], share: slice) -> Tensor:
        """That of the batch's objective."""
        name, rows = batch
        return self.objectives[name][1].loss(rows, share)

    def figures(self) -> dict[str, dict[str, float]]:
        """Objective → metrics on valid."""
        return {name: objective.figures() for name, (_, objective) in self.objectives.items()}

    def judge(self) -> float:
        """The objectives' scores on valid, by weight."""
        self.model.refresh()
        figures = self.figures()
        total = sum(weight for weight, _ in self.objectives.values())
        scores = (w * o.score(figures[name]) for name, (w, o) in self.objectives.items())
        return sum(scores) / total
