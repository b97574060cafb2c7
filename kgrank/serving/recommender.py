"""Rankings from a fitted bundle: for known users, for visitors, for given products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from kgrank.errors import ConfigError
from kgrank.fusion.history import Decay, Histories, Spans
from kgrank.fusion.model import FusedModel, Head, exclude, top_n
from kgrank.kg.vocabulary import Vocabulary
from kgrank.serving.bundle import Bundle
from kgrank.serving.explaining import Profile, explain, profile
from kgrank.serving.explanation import Explanation

Repeats = Literal["exclude", "allow", "only"]

CELLS = 16_000_000  # users × items scored at a time: 64 MB of float32


class Recommender:
    """A bundle put to work. It never changes.

    Args:
        bundle: the fitted bundle.
        device: "auto" (cuda where there is one), "cpu" or "cuda": where dense products are done.
    """

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.bundle = bundle
        self.model: FusedModel = bundle.model.to(device)

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
        blocks = [
            self._lists(
                np.asarray(user_ids, object)[rows], histories, spans, n, candidates, repeats
            )
            for rows, spans in self._blocks(histories.of_users(users))
        ]
        return pd.concat(blocks, ignore_index=True) if blocks else _no_lists()

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
        lists = self._lists(np.array([""], object), visitor, spans, n, candidates, repeats)
        return lists.drop(columns="user_id")

    def rank(self, user_id: str, item_ids: Sequence[str]) -> pd.DataFrame:
        """The given items, met before or not, in the user's order: `item_id`, `score`, `rank`.

        Raises:
            UnknownIdError: the user or an item is unknown.
        """
        items = np.unique(self.bundle.items.numbers(list(item_ids)))
        if not len(items):
            return _no_lists().drop(columns="user_id")
        spans = self.bundle.histories.of_users(self.bundle.users.numbers([user_id]))
        scores = self.model.scores(self.bundle.histories, spans, "new")
        chosen, values = top_n(scores[:, torch.from_numpy(items.astype(np.int64))], len(items))
        ids = self.bundle.items.ids(items[chosen[0].numpy()])
        return pd.DataFrame(
            {"item_id": ids, "score": values[0].numpy(), "rank": np.arange(1, len(ids) + 1)}
        )

    def similar_items(self, item_ids: Sequence[str], n: int = 10) -> pd.DataFrame:
        """Items that a history of the one item alone speaks for, popularity left out.

        Returns:
            `item_id` (the one asked about), `similar_id`, `score`, `rank`.

        Raises:
            UnknownIdError: an item is unknown.
        """
        _check_length(n)
        bundle = self.bundle
        items = self.bundle.items.numbers(list(item_ids))
        starts = np.arange(len(items) + 1)
        alone = Histories(
            starts=starts,
            items=items.astype(np.int32),
            kinds=np.zeros(len(items), np.int16),
            times=np.full(len(items), np.nan),
            kind_names=("interaction",),
            n_items=len(bundle.items),
        )
        spans = Spans(starts[:-1], starts[1:])
        bias = torch.from_numpy(self.model.heads["new"].bias(self.model.side))
        tables = []
        for rows, block in self._blocks(spans):
            scores = self.model.scores(alone, block, "new") - bias
            exclude(scores, alone.weights(block, Decay()))
            chosen, values = top_n(scores, n)
            asked = np.asarray(item_ids, object)[rows]
            tables.append(_table(asked, chosen, values, bundle.items))
        table = pd.concat(tables, ignore_index=True) if tables else _no_lists()
        return table.rename(columns={"item_id": "similar_id", "user_id": "item_id"})

    def explain(
        self,
        user_id: str,
        item_id: str,
        max_paths: int = 3,
        repeats: Repeats | None = None,
        language: Literal["en", "zh"] = "en",
    ) -> Explanation:
        """Why this product for this user, and by how much.

        Args:
            user_id: a user the bundle knows.
            item_id: an item the bundle knows.
            max_paths: at most so many graph paths.
            repeats: the kind of list whose score is explained; None = "exclude", or "allow" for
                an item that the user has met.
            language: of the text.

        Raises:
            UnknownIdError: the user or the item is unknown.
        """
        head: Head | None = None if repeats is None else _head(repeats)
        return explain(self.bundle, self.model, user_id, item_id, max_paths, head, language)

    def profile(self, user_id: str) -> Profile:
        """What the engine knows of a user.

        Raises:
            UnknownIdError: the user is unknown.
        """
        return profile(self.bundle, user_id)

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

    def _blocks(self, spans: Spans) -> Iterator[tuple[slice, Spans]]:
        size = max(1, CELLS // len(self.bundle.items))
        for start in range(0, len(spans), size):
            rows = slice(start, start + size)
            yield rows, spans[rows]

    def _lists(
        self,
        names: npt.NDArray[np.object_],
        histories: Histories,
        spans: Spans,
        n: int,
        candidates: Sequence[str] | None,
        repeats: Repeats,
    ) -> pd.DataFrame:
        _check_length(n)
        scores = self.model.scores(histories, spans, _head(repeats))
        met = histories.weights(spans, Decay())
        if repeats == "exclude":
            exclude(scores, met)
        elif repeats == "only":
            kept = torch.full_like(scores, -torch.inf)
            rows = torch.from_numpy(np.repeat(np.arange(met.shape[0]), np.diff(met.indptr)))
            columns = torch.from_numpy(met.indices.astype(np.int64))
            kept[rows, columns] = scores[rows, columns]
            scores = kept
        if candidates is not None:
            numbers = self.bundle.items.numbers(list(candidates))
            outside = torch.ones(scores.shape[1], dtype=torch.bool)
            outside[torch.from_numpy(numbers.astype(np.int64))] = False
            scores.masked_fill_(outside, -torch.inf)
        chosen, values = top_n(scores, n)
        return _table(names, chosen, values, self.bundle.items)


def _check_length(n: int) -> None:
    if n < 1:
        raise ConfigError(f"n: found {n}; allowed: 1 or more. Ask for at least one item.")


def _head(repeats: str) -> Head:
    if repeats not in ("exclude", "allow", "only"):
        raise ConfigError(
            f"repeats: found {repeats!r}; allowed: exclude, allow, only. Pass one of them."
        )
    return "new" if repeats == "exclude" else "all"


def _table(
    names: npt.NDArray[np.object_], chosen: torch.Tensor, values: torch.Tensor, items: Vocabulary
) -> pd.DataFrame:
    """Lists as rows; places where a list has ended are left out."""
    listed = (chosen >= 0).numpy()
    rows, places = listed.nonzero()
    return pd.DataFrame(
        {
            "user_id": names[rows],
            "item_id": items.ids(chosen.numpy()[listed]),
            "score": values.numpy()[listed],
            "rank": places + 1,
        }
    )


def _no_lists() -> pd.DataFrame:
    nothing: list[str] = []
    return pd.DataFrame(
        {
            "user_id": pd.Series(nothing, dtype=str),
            "item_id": pd.Series(nothing, dtype=str),
            "score": np.empty(0, np.float32),
            "rank": np.empty(0, np.int64),
        }
    )
