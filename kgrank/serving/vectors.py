"""A bundle's vectors, kept in an embedding store for whoever serves from one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from kgrank.errors import ConfigError, ModelError
from kgrank.fusion.channels import DenseFeatures
from kgrank.fusion.fusing import LEARNED
from kgrank.fusion.history import Histories, Spans
from kgrank.fusion.model import FusedModel, Head
from kgrank.kg.embeddings import EmbeddingStore
from kgrank.kg.generations import MANIFEST
from kgrank.kg.vectors import Vectors
from kgrank.kg.vocabulary import Ids
from kgrank.serving.bundle import Bundle

Users = Sequence[str] | Literal["all"] | None
Groups = dict[str, tuple[Ids, Vectors] | None]

GROUPS = ("item", "user", "learned", "learned_history", "learned_user", "entity")
"""The groups of the store; those that a bundle has nothing for are taken out."""


def write_vectors(
    bundle: Bundle, model: FusedModel, path: Path, users: Users, head: Head
) -> EmbeddingStore:
    """What `Recommender.write_vectors` tells of; `model` is the bundle's, on any device."""
    if isinstance(users, str) and users != "all":
        raise ConfigError(
            f"users: found the single string {users!r}; allowed: a list of ids, 'all' or None. "
            "Put the id into a list."
        )
    asked = bundle.users.array if isinstance(users, str) else users
    numbers = None if asked is None else bundle.users.numbers(asked)
    groups: Groups = {
        **dict.fromkeys(GROUPS),
        **_fused(bundle, model, numbers, head),
        **_learned(bundle, model, numbers),
    }
    if not any(groups.values()):
        raise ModelError(
            f"found no dense channel, only {', '.join(model.other_channels(head)) or 'the bias'}; "
            "allowed: embedding, image or learned. Train with an encoder of text ([text] model), "
            "pictures ([image] model) or the graph ([kg] encoder; it is left out where it adds "
            "nothing on valid)."
        )
    there = (path / MANIFEST).exists()
    store = EmbeddingStore.open(path) if there else EmbeddingStore.create(path)
    return store.replace(groups)


def _fused(
    bundle: Bundle, model: FusedModel, users: npt.NDArray[np.int32] | None, head: Head
) -> Groups:
    """The groups whose product is the dense part of the score."""
    if not model.dense_channels(head):
        return {}
    items = model.item_vectors(head).cpu().numpy()
    groups: Groups = {"item": (bundle.items.array, items)}
    if users is not None:
        fold = partial(model.user_vectors, bundle.histories, head=head)
        folded = _Folded(fold, bundle.histories, users, items.shape[1])
        groups["user"] = bundle.users.ids(users), folded
    return groups


def _learned(bundle: Bundle, model: FusedModel, users: npt.NDArray[np.int32] | None) -> Groups:
    """The groups of the learned channel: what the graph encoder made of items and entities."""
    channel = next((channel for channel in model.channels if channel.name == LEARNED), None)
    if channel is None or not isinstance(channel.form, DenseFeatures):
        return {}
    form, decay, histories = channel.form, channel.decay, bundle.histories
    groups: Groups = {
        "learned": (bundle.items.array, form.values.cpu().numpy()),
        "learned_history": (bundle.items.array, form.of_history.cpu().numpy()),
    }
    if form.entities is not None:
        groups["entity"] = form.entities.ids, form.entities.values
    if users is not None:

        def fold(spans: Spans) -> torch.Tensor:
            return form.scaled(histories.weights(spans, decay))[0]

        folded = _Folded(fold, histories, users, form.values.shape[1])
        groups["learned_user"] = bundle.users.ids(users), folded
    return groups


@dataclass(frozen=True, eq=False)
class _Folded:
    """Users' vectors, folded when they are asked for: all at once may be more than memory holds."""

    fold: Callable[[Spans], torch.Tensor]
    histories: Histories
    users: npt.NDArray[np.int32]
    dim: int

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.users), self.dim

    def __getitem__(self, rows: npt.NDArray[np.int64], /) -> npt.NDArray[np.float32]:
        return np.asarray(self.fold(self.histories.of_users(self.users[rows])).cpu())
