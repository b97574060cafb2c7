"""Distilling: an encoder of fewer layers learns to give a text the vector that the whole one gives.

The loss is the squared distance of the two sentence vectors of length 1, which is 2 − 2 · cosine
(Reimers and Gurevych 2020, "Making Monolingual Sentence Embeddings Multilingual using Knowledge
Distillation"; that the student begins as some of the teacher's layers is from Sanh et al. 2019,
"DistilBERT, a distilled version of BERT").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kgrank.devices import half_precision
from kgrank.encoders.pooling import Mode
from kgrank.encoders.runtimes import padded, sentence_vectors

_POOL = 32  # batches whose texts are sorted by length together, so that little padding is computed


@dataclass(frozen=True, eq=False)
class Lessons:
    """Texts as tokens, and what the teacher says of each.

    Attributes:
        ids: token numbers of each of n texts, one or more.
        vectors: (n, dim) float32 of length 1.
    """

    ids: Sequence[Sequence[int]]
    vectors: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def digest(self) -> str:
        """sha256 (hex) of it all."""
        total = sha256(self.vectors.tobytes())
        total.update(repr(self.ids).encode())
        return total.hexdigest()


class DistilTask:
    """What `kgrank.loop.Loop` trains: a student whose vectors are the teacher's.

    Args:
        student: a transformer that gives `last_hidden_state`.
        mode: how token vectors become one.
        pad_id: number of the padding.
        train: what is learned from.
        held: on what the student is judged.
        batch: texts a step.
        seed: of the order of texts.
        device: "cpu", or "cuda", where the model computes in bfloat16.
    """

    def __init__(
        self,
        student: nn.Module,
        mode: Mode,
        pad_id: int,
        train: Lessons,
        held: Lessons,
        *,
        batch: int,
        seed: int,
        device: str,
    ) -> None:
        for part in student.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0  # the teacher says the same of a text each time
        self.module = student.to(device)
        self.mode, self.pad_id = mode, pad_id
        self.train, self.held = train, held
        self.batch, self.seed, self.device = batch, seed, device

    def batches(self, epoch: int) -> Sequence[npt.NDArray[np.int64]]:
        """Rows of all train texts, `batch` a step, in random order, near others of their length."""
        rng = np.random.default_rng((self.seed, epoch))
        lengths = np.array([len(ids) for ids in self.train.ids])
        rows = rng.permutation(len(lengths))
        batches: list[npt.NDArray[np.int64]] = []
        for start in range(0, len(rows), _POOL * self.batch):
            pool = rows[start : start + _POOL * self.batch]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += np.split(pool, range(self.batch, len(pool), self.batch))
        return [batches[number] for number in rng.permutation(len(batches))]

    @property
    def settled(self) -> bool:
        """Always."""
        return True

    def loss(self, batch: npt.NDArray[np.int64], share: slice) -> Tensor:
        """Squared distance of student and teacher, summed over some rows, by all of the batch."""
        rows = batch[share]
        student, teacher = self._vectors(self.train, rows)
        return (student - teacher).square().sum() / len(batch)

    def judge(self) -> float:
        """Mean cosine of student and teacher on the held-out texts."""
        order = np.argsort([len(ids) for ids in self.held.ids], kind="stable")
        total = 0.0
        self.module.eval()
        with torch.no_grad():
            for start in range(0, len(order), self.batch):
                student, teacher = self._vectors(self.held, order[start : start + self.batch])
                total += float((student * teacher).sum())
        return total / len(order)

    def _vectors(self, lessons: Lessons, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """What student and teacher say of some texts, each (b, dim) float32 of length 1."""
        arrays = padded([lessons.ids[row] for row in rows], self.pad_id)
        tokens, mask = (torch.from_numpy(array).to(self.device) for array in arrays)
        with half_precision(self.device):
            pooled = sentence_vectors(self.module, tokens, mask, self.mode)
        teacher = torch.from_numpy(lessons.vectors[rows]).to(self.device)
        return nn.functional.normalize(pooled, dim=1), teacher
