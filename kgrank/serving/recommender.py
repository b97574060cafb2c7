"""Rankings from a fitted bundle: for known users, for visitors, for given products."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch

from kgrank.devices import choose_device
from kgrank.errors import ConfigError
from kgrank.fusion.history import Histories, Spans
from kgrank.fusion.model import FusedModel, Head, Repeats
from kgrank.kg.embeddings import EmbeddingStore
from kgrank.kg.vocabulary import Vocabulary, string_array
from kgrank.serving.bundle import Bundle
from kgrank.serving.explaining import Explainer, Profile, profile
from kgrank.serving.explanation import Explanation
from kgrank.serving.vectors import write_vectors


class Recommender:
    """A bundle put to work. It never changes.

    Args:
        bundle: the fitted bundle.
        device: "auto" (cuda where there is one), "cpu" or "cuda": where dense products are done.

    Raises:
        ModelError: there is no such device here.
    """

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        self.bundle = bundle
        self.model: FusedModel = bundle.model.to(choose_device(device))

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Recommender:
        """Read a bundle's folder, or the current one of a models folder.

        Raises:
            BundleError: the bundle is damaged, missing or of an unknown format.
        """
        return cls(Bundle.load(path), device)

    def recommend(
        self,
        user_ids: Sequence[str],
        n: int = 10,
        candidates: Sequence[str] | None = None,
        repeats: Repeats = "exclude",
    ) -> pd.DataFrame:
        """The n best items of each user.

        Args:
            user_ids: users the bundle knows.
            n: length of each list; shorter where fewer items may be listed.
            candidates: only these items are listed; all if None.
            repeats: "exclude" lists only what the user has not met, "allow" everything, "only"
                what the user has met.

        Returns:
            `user_id`, `item_id`, `score` (float32), `rank` (from 1): users in the order given, each
            best first; equal scores order by item number.

        Raises:
            UnknownIdError: a user or candidate that the bundle does not know.
            ConfigError: n is below 1, or `repeats` is none of the three.
        """
        users = self.bundle.users.numbers(list(user_ids))
        histories = self.bundle.histories
        return self._lists(user_ids, histories, histories.of_users(users), n, candidates, repeats)

    def recommend_history(
        self,
        history: Sequence[tuple[str, str]],
        n: int = 10,
        candidates: Sequence[str] | None = None,
        repeats: Repeats = "exclude",
    ) -> pd.DataFrame:
        """The n best items for a visitor nobody has seen before.

        Args:
            history: (item_id, event) pairs, oldest first; may be empty.
            n: length of the list.
            candidates: only these items are listed; all if None.
            repeats: as in `recommend`.

        Returns:
            `item_id`, `score`, `rank`.

        Raises:
            UnknownIdError: an item that the bundle does not know.
        """
        visitor = self._visitor(history)
        spans = Spans(visitor.starts[:1], visitor.starts[1:])
        lists = self._lists([""], visitor, spans, n, candidates, repeats)
        return lists.drop(columns="user_id")

    def rank(self, user_id: str, item_ids: Sequence[str]) -> pd.DataFrame:
        """The given items, met before or not, in the user's order: `item_id`, `score`, `rank`.

        Raises:
            UnknownIdError: the user or an item is unknown.
        """
        histories = self.bundle.histories
        spans = histories.of_users(self.bundle.users.numbers([user_id]))
        items = self.bundle.items.numbers(list(item_ids))
        found = self.model.top(histories, spans, "new", len(items), candidates=items)
        return _table([user_id], *found, self.bundle.items).drop(columns="user_id")

    def similar_items(self, item_ids: Sequence[str], n: int = 10) -> pd.DataFrame:
        """Items that a history of the one item alone speaks for, popularity left out.

        Returns:
            `item_id` (the one asked about), `similar_id`, `score`, `rank`.

        Raises:
            UnknownIdError: an item is unknown.
        """
        _check_length(n)
        items = self.bundle.items.numbers(list(item_ids))
        starts = np.arange(len(items) + 1)
        alone = Histories(
            starts=starts,
            items=items.astype(np.int32),
            kinds=np.zeros(len(items), np.int16),
            times=np.full(len(items), np.nan),
            kind_names=("interaction",),
            n_items=len(self.bundle.items),
        )
        spans = Spans(starts[:-1], starts[1:])
        found = self.model.top(alone, spans, "new", n, repeats="exclude", bias=False)
        table = _table(item_ids, *found, self.bundle.items)
        return table.rename(columns={"item_id": "similar_id", "user_id": "item_id"})

    def explain(
        self,
        user_id: str,
        item_id: str,
        max_paths: int = 3,
        repeats: Repeats | None = None,
        language: Literal["en", "zh"] = "en",
        anonymous: bool = False,
    ) -> Explanation:
        """Why this product for this user, and by how much.

        Args:
            user_id: a user the bundle knows.
            item_id: an item the bundle knows.
            max_paths: at most so many paths.
            repeats: the kind of list whose score is explained; None = "exclude", or "allow" for
                an item that the user has met.
            language: of the text.
            anonymous: whether the ids of other users are left out of the paths.

        Raises:
            UnknownIdError: the user or the item is unknown.
        """
        head: Head | None = None if repeats is None else head_of(repeats)
        found = self.explainer.explain(
            user_id,
            [item_id],
            max_paths=max_paths,
            head=head,
            language=language,
            anonymous=anonymous,
        )
        return next(found)

    @cached_property
    def explainer(self) -> Explainer:
        """Takes scores apart, several of one user at a time."""
        return Explainer(self.bundle, self.model)

    def profile(self, user_id: str) -> Profile:
        """What the engine knows of a user.

        Raises:
            UnknownIdError: the user is unknown.
        """
        return profile(self.bundle, user_id)

    def write_vectors(
        self,
        path: str | Path,
        users: Sequence[str] | Literal["all"] | None = None,
        repeats: Repeats = "exclude",
    ) -> EmbeddingStore:
        """Keep the model's vectors in an embedding store, to serve from it or from what it fills.

        | group | what its vectors are |
        |---|---|
        | `item` | each dense channel's vector times the gate of the item, then the bias |
        | `user` | the folded history in each dense channel over its size, then 1 |
        | `learned` | the learned channel's items in lists, of length 1 |
        | `learned_history` | the same items in histories |
        | `learned_user` | the folded history in the learned channel over its size |
        | `entity` | what an item gains by a fact to the entity, in the space of `learned` |

        user · item is the share that the dense channels (`embedding`, `image`, `learned`) and the
        bias have in the score. **It is not the score**: the sparse channels (`linear`,
        `directed`, `graph`, `text`, `repeat`) are no vectors, and where they weigh most the product
        alone ranks badly. `model.dense_channels(head)` and `model.other_channels(head)` name both
        ("new" is the head of "exclude", "all" of the other lists). learned_user · learned and
        learned_history · learned are what the learned channel says for a user and after an item,
        before its gate; entity · learned orders the items that the entity speaks for.

        Groups that the bundle has nothing for are left out: `item` and `user` where no dense
        channel weighs in these lists, the learned ones and `entity` where the learned channel
        weighs in none. An entity that holds of one item alone has no vector.

        A store that is there already is brought to what the bundle says: vectors that are new or
        other are written, those of items and users not in this call are deleted, in one
        generation. A killed process leaves the old one. Other groups in it stay. Deleted vectors
        leave the disk with `EmbeddingStore.compact`: call it after a user was erased.

        Args:
            path: the store's folder; made if it is not there.
            users: whose vectors are kept: ids that the bundle knows, each once, or "all"; None =
                no user's.
            repeats: the lists that `item` and `user` are for: "exclude" for new products only;
                "allow" and "only" are weighed alike.

        Returns:
            The store's newest generation.

        Raises:
            UnknownIdError: a user is unknown.
            DataError: a user comes twice.
            ConfigError: `users` is a string, but not "all"; or `repeats` is none of the three.
            ModelError: there is no learned channel, and no dense channel weighs in these lists.
            StoreError: the folder holds something else, another process is writing there, or a
                file is damaged.
            OSError: the disk is full or the like; the newest generation stays.
        """
        return write_vectors(self.bundle, self.model, Path(path), users, head_of(repeats))

    def _visitor(self, history: Sequence[tuple[str, str]]) -> Histories:
        kinds = self.bundle.histories.kind_names
        names = tuple(sorted({*kinds, *(event for _, event in history)}))
        return Histories(
            starts=np.array([0, len(history)]),
            items=self.bundle.items.numbers([item for item, _ in history]).astype(np.int32),
            kinds=np.array([names.index(event) for _, event in history], np.int16),
            times=np.full(len(history), np.nan),
            kind_names=names,
            n_items=len(self.bundle.items),
        )

    def _lists(
        self,
        names: Sequence[str],
        histories: Histories,
        spans: Spans,
        n: int,
        candidates: Sequence[str] | None,
        repeats: Repeats,
    ) -> pd.DataFrame:
        _check_length(n)
        items = self.bundle.items
        numbers = None if candidates is None else items.numbers(list(candidates))
        found = self.model.top(
            histories, spans, head_of(repeats), n, repeats=repeats, candidates=numbers
        )
        return _table(names, *found, items)


def _check_length(n: int) -> None:
    if n < 1:
        raise ConfigError(f"n: found {n}; allowed: 1 or more. Ask for at least one item.")


def head_of(repeats: str) -> Head:
    """The head of lists that treat repeats so.

    Raises:
        ConfigError: `repeats` is none of the three.
    """
    if repeats not in ("exclude", "allow", "only"):
        raise ConfigError(
            f"repeats: found {repeats!r}; allowed: exclude, allow, only. Pass one of them."
        )
    return "new" if repeats == "exclude" else "all"


def _table(
    names: Sequence[str], chosen: torch.Tensor, values: torch.Tensor, items: Vocabulary
) -> pd.DataFrame:
    """Lists as rows; places where a list has ended are left out."""
    listed = (chosen >= 0).numpy()
    rows, places = listed.nonzero()
    return pd.DataFrame(
        {
            "user_id": _strings(string_array(names), rows),
            "item_id": _strings(items.array, chosen.numpy()[listed]),
            "score": values.numpy()[listed],
            "rank": places + 1,
        }
    )


def _strings(ids: pa.Array, numbers: npt.NDArray[np.int64]) -> pd.Series[str]:
    """The ids of the numbers, without making a Python string of each."""
    return pd.Series(ids.take(pa.array(numbers)), dtype="str")
