"""Rankings from a fitted bundle: for known users, for visitors, for given products."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch

from kgrank.devices import choose_device
from kgrank.fusion.history import Histories, Spans
from kgrank.fusion.model import FusedModel, Head, Repeats, Task
from kgrank.kg.embeddings import EmbeddingStore
from kgrank.kg.vocabulary import Vocabulary, string_array
from kgrank.serving.bundle import Bundle
from kgrank.serving.checks import (
    check_length,
    check_paths,
    event_pairs,
    head_of,
    id_list,
    task_head,
)
from kgrank.serving.effects import with_rules
from kgrank.serving.explaining import Explainer
from kgrank.serving.explanation import Explanation
from kgrank.serving.profiling import ItemProfile, Profile, item_profile, profile
from kgrank.serving.rules import Rules
from kgrank.serving.ruling import VISITOR, Ruling
from kgrank.serving.vectors import write_vectors
from kgrank.serving.why_not import WhyNot, why_not


class Recommender:
    """A bundle put to work. It never changes.

    Args:
        bundle: the fitted bundle.
        device: "auto" (cuda where there is one), "cpu" or "cuda": where dense products are done.
        rules: the rules that lists keep to; the bundle's if None. `Rules.none()` for none.
        at: the moment, seconds UTC, that lists are for; None = when they are made. Only rules
            ask for it.

    Raises:
        ModelError: there is no such device here.
        ConfigError: the rules speak of what the bundle has not.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        rules: Rules | None = None,
        at: float | None = None,
    ) -> None:
        self.bundle = bundle
        self.model: FusedModel = bundle.model.to(choose_device(device))
        self.ruling = Ruling(bundle, self.model, bundle.rules if rules is None else rules, at)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        rules: str | Path | Rules | None = None,
        at: float | None = None,
    ) -> Recommender:
        """Read a bundle's folder, or the current one of a models folder.

        Args:
            path: the folder.
            device: as for the class.
            rules: a file of rules (`kgrank.serving.rules`) in place of those in the bundle, so
                that they change without training; or `Rules` themselves.
            at: as for the class.

        Raises:
            BundleError: the bundle is damaged, missing or of an unknown format.
            ConfigError: the rules are at fault; a line for each fault.
        """
        read = Rules.read(rules) if isinstance(rules, str | Path) else rules
        return cls(Bundle.load(path), device, read, at)

    def fixed(self) -> Recommender:
        """The same recommender, all its lists for this moment: rules do not change meanwhile."""
        same = copy(self)
        same.ruling = self.ruling.fixed()
        return same

    def recommend(
        self,
        user_ids: Sequence[str],
        n: int = 10,
        candidates: Sequence[str] | None = None,
        repeats: Repeats = "exclude",
        task: Task = "rank",
    ) -> pd.DataFrame:
        """The n best items of each user, under the rules.

        Args:
            user_ids: users the bundle knows.
            n: length of each list; shorter where fewer items may be listed.
            candidates: only these items are listed; all if None.
            repeats: "exclude" lists only what the user has not met, "allow" everything, "only"
                what the user has met.
            task: whose head lists: "rank" puts what the user will choose first; "click",
                "purchase", "conversion" and "rating" also say how probably, or what the rating
                will be.

        Returns:
            `user_id`, `item_id`, `score` (float32), `rank` (from 1): users in the order given, each
            best first; equal scores order by item number. A score holds what rules add to it;
            where rules pin items or spread lists out, `rank` is not the order of the scores. After
            the score of a task but "rank" stands `probability` or `rating` (float64), see
            `kgrank.fusion.tasks`; rules do not change it.

        Raises:
            UnknownIdError: a user or candidate that the bundle does not know.
            ConfigError: n is below 1, or `repeats` or `task` is none of the allowed ones.
            ModelError: the bundle has no head for the task.
        """
        user_ids = id_list("user_ids", user_ids)
        users = self.bundle.users.numbers(user_ids)
        histories = self.bundle.histories
        spans = histories.of_users(users)
        return self._lists(user_ids, histories, spans, n, candidates, repeats, task, users)

    def recommend_history(
        self,
        history: Sequence[tuple[str, str]],
        n: int = 10,
        candidates: Sequence[str] | None = None,
        repeats: Repeats = "exclude",
        task: Task = "rank",
    ) -> pd.DataFrame:
        """The n best items for a visitor nobody has seen before.

        Of a visitor no attribute is known, and no segment: rules that ask for one do not hold.

        Args:
            history: (item_id, event) pairs, oldest first; may be empty.
            n: length of the list.
            candidates: only these items are listed; all if None.
            repeats, task: as in `recommend`. A visitor's ratings have no value here.

        Returns:
            `item_id`, `score`, `rank`; and `probability` or `rating` as in `recommend`.

        Raises:
            UnknownIdError: an item that the bundle does not know.
            ConfigError, ModelError: as in `recommend`.
        """
        visitor = self._visitor(history)
        spans = Spans(visitor.starts[:1], visitor.starts[1:])
        visitors = np.array([VISITOR])
        lists = self._lists([""], visitor, spans, n, candidates, repeats, task, visitors)
        return lists.drop(columns="user_id")

    def rank(
        self,
        user_id: str,
        item_ids: Sequence[str],
        task: Task = "rank",
        repeats: Repeats = "exclude",
    ) -> pd.DataFrame:
        """The given items, met before or not, in the user's order: `item_id`, `score`, `rank`.

        Another task than "rank" adds `probability` or `rating`, as in `recommend`.
        Rules do not touch it: who names the items has chosen them.

        Args:
            user_id: a user the bundle knows.
            item_ids: items the bundle knows.
            task: as in `recommend`.
            repeats: the kind of list whose scores these are, as in `explain`: "exclude" weighs all
                items as if they were new to the user, "allow" knows which were met.

        Raises:
            UnknownIdError: the user or an item is unknown.
            ConfigError, ModelError: as in `recommend`.
        """
        head = task_head(self.bundle, task, repeats)
        item_ids = id_list("item_ids", item_ids)
        histories = self.bundle.histories
        spans = histories.of_users(self.bundle.users.numbers([user_id]))
        items = self.bundle.items.numbers(item_ids)
        found = self.model.top(histories, spans, head, len(items), candidates=items)
        return self._table([user_id], *found, head).drop(columns="user_id")

    def similar_items(self, item_ids: Sequence[str], n: int = 10) -> pd.DataFrame:
        """Items that a history of the one item alone speaks for, popularity left out.

        Of the rules, `exclude` and `only` are kept to where they hold for everybody.

        Returns:
            `item_id` (the one asked about), `similar_id`, `score`, `rank`.

        Raises:
            UnknownIdError: an item is unknown.
        """
        check_length(n)
        item_ids = id_list("item_ids", item_ids)
        items = self.bundle.items.numbers(item_ids)
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
        users = np.full(len(items), VISITOR)
        pick = self.ruling.pick(users, n, "new", only_leave_out=True)
        found = self.model.top(alone, spans, "new", n, repeats="exclude", bias=False, pick=pick)
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
        task: Task = "rank",
    ) -> Explanation:
        """Why this product for this user, and by how much.

        Boosts are a part of the score (`contributions["rules"]`); what the rules do to the
        product in the user's list of ten is told in `rules`.

        Args:
            user_id: a user the bundle knows.
            item_id: an item the bundle knows.
            max_paths: at most so many paths.
            repeats: the kind of list whose score is explained; None = "exclude", or "allow" for
                an item that the user has met.
            language: of the text.
            anonymous: whether the ids of other users are left out of the paths.
            task: whose head's score is explained, as in `recommend`. The parts sum to the score
                before the link: of a probability, to the log-odds before calibration.

        Raises:
            UnknownIdError: the user or the item is unknown.
            ConfigError, ModelError: as in `recommend`.
        """
        check_paths(max_paths)
        head: Head | None = None
        if task != "rank" or repeats is not None:
            head = task_head(self.bundle, task, repeats or "exclude")
        found = self.explainer.explain(
            user_id,
            [item_id],
            max_paths=max_paths,
            head=head,
            language=language,
            anonymous=anonymous,
        )
        return next(with_rules(found, self.ruling, repeats, head, language))

    @cached_property
    def explainer(self) -> Explainer:
        """Takes scores apart, several of one user at a time; it knows no rules."""
        return Explainer(self.bundle, self.model)

    def why_not(
        self,
        user_id: str,
        item_id: str,
        n: int = 10,
        candidates: Sequence[str] | None = None,
        repeats: Repeats = "exclude",
        language: Literal["en", "zh"] = "en",
    ) -> WhyNot:
        """Why a product is not on a user's list, and the one event that would list it.

        Args:
            user_id: a user the bundle knows.
            item_id: an item the bundle knows.
            n, candidates, repeats: the list, as in `recommend`.
            language: of the text.

        Raises:
            UnknownIdError: the user or an item is unknown.
            ConfigError: n is below 1, or `repeats` or the language is none of the known ones.
        """
        check_length(n)
        numbers = None
        if candidates is not None:
            numbers = self.bundle.items.numbers(id_list("candidates", candidates))
        head = head_of(repeats)
        return why_not(self.ruling, user_id, item_id, n, numbers, repeats, head, language)

    def profile(self, user_id: str) -> Profile:
        """What the engine knows of a user, each line with the events behind it.

        Raises:
            UnknownIdError: the user is unknown.
        """
        return profile(self.bundle, user_id)

    def profile_item(self, item_id: str, n: int = 10) -> ItemProfile:
        """What the engine knows of a product: its facts, its neighbours, and whom it draws.

        Args:
            item_id: an item the bundle knows.
            n: how many neighbours, and how many values of user attributes.

        Raises:
            UnknownIdError: the item is unknown.
        """
        alike = self.similar_items([item_id], n)
        similar = list(zip(alike["similar_id"], map(float, alike["score"]), strict=True))
        return item_profile(self.bundle, item_id, similar, n=n)

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
        history = event_pairs(history)
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
        task: Task,
        users: npt.NDArray[np.integer],
    ) -> pd.DataFrame:
        check_length(n)
        head = task_head(self.bundle, task, repeats)
        items = self.bundle.items
        numbers = None if candidates is None else items.numbers(id_list("candidates", candidates))
        at = self.ruling.moment()  # one for all that is asked of the rules
        pick = self.ruling.pick(users, n, head, numbers, at=at)
        chosen, values = self.model.top(
            histories, spans, head, n, repeats=repeats, candidates=numbers, pick=pick
        )
        boosts = None
        if pick is not None and head in self.model.predictors:
            boosts = self.ruling.boosts(users, chosen, n, head, at)
        return self._table(names, chosen, values, head, boosts)

    def _table(
        self,
        names: Sequence[str],
        chosen: torch.Tensor,
        values: torch.Tensor,
        head: Head,
        boosts: torch.Tensor | None = None,
    ) -> pd.DataFrame:
        """Lists as rows, with what the head predicts from the scores without the boosts."""
        table = _table(names, chosen, values, self.bundle.items)
        if head in self.model.predictors:
            own = values if boosts is None else values - boosts
            predicted = self.model.predictors[head].link(own[chosen >= 0].numpy())
            table.insert(3, "rating" if head == "rating" else "probability", predicted)
        return table


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
