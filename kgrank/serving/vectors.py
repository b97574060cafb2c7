"""A bundle's vectors, kept in an embedding store for whoever serves from one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from kgrank.errors import ConfigError, ModelError
from kgrank.fusion.channels import DenseFeatures
from kgrank.fusion.fusing import LEARNED
from kgrank.fusion.history import Histories
from kgrank.fusion.model import FusedModel, Head
from kgrank.kg.embeddings import EmbeddingStore
from kgrank.kg.generations import MANIFEST
from kgrank.kg.vectors import Vectors
from kgrank.kg.vocabulary import Ids
from kgrank.serving.bundle import Bundle

Users = Sequence[str] | Literal["all"] | None

HEAD: Head = "new"

GROUPS = ("item", "user", "learned", "learned_history", "entity")
"""The groups of the store; those that a bundle has nothing for are taken out."""


def write_vectors(bundle: Bundle, model: FusedModel, path: Path, users: Users) -> EmbeddingStore:
    """What `Recommender.write_vectors` tells of; `model` is the bundle's, on any device."""
    if isinstance(users, str) and users != "all":
        raise ConfigError(
            f"users: found the single string {users!r}; allowed: a list of ids, 'all' or None. "
            "Put the id into a list."
        )
    asked = bundle.users.array if isinstance(users, str) else users
    if not model.dense_channels(HEAD):
        raise ModelError(
            f"found no dense channel, only {', '.join(model.other_channels(HEAD))}; allowed: one "
            "at least, 'embedding' or 'learned'. Train with a text encoder ([text] model) or a "
            "graph encoder ([kg] encoder), which is left out where it adds nothing on valid."
        )
    items = bundle.items.array
    groups: dict[str, tuple[Ids, Vectors] | None] = dict.fromkeys(GROUPS)
    groups["item"] = items, model.item_vectors(HEAD).cpu().numpy()
    if asked is not None:
        numbers = bundle.users.numbers(asked)
        groups["user"] = bundle.users.ids(numbers), _Folded(model, bundle.histories, numbers)
    learned = next((c.form for c in model.channels if c.name == LEARNED), None)
    if isinstance(learned, DenseFeatures):
        groups["learned"] = items, learned.values.cpu().numpy()
        groups["learned_history"] = items, learned.of_history.cpu().numpy()
        if learned.entities is not None:
            groups["entity"] = learned.entities.ids, learned.entities.values
    there = (path / MANIFEST).exists()
    store = EmbeddingStore.open(path) if there else EmbeddingStore.create(path)
    return store.replace(groups)


@dataclass(frozen=True, eq=False)
class _Folded:
    """Users' vectors, folded when they are asked for: all at once may be more than memory holds."""

    model: FusedModel
    histories: Histories
    numbers: npt.NDArray[np.int32]

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.numbers), self.model.item_vectors(HEAD).shape[1]

    def __getitem__(self, rows: npt.NDArray[np.int64], /) -> npt.NDArray[np.float32]:
        spans = self.histories.of_users(self.numbers[rows])
        return np.asarray(self.model.user_vectors(self.histories, spans, HEAD).cpu())
