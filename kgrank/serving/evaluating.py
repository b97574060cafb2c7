"""How well a bundle ranks the events it has not seen, beside popularity and EASE."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
import torch.nn.functional as F

from kgrank.config import Config, read_source
from kgrank.errors import ConfigError
from kgrank.fusion.evidence import Evidence
from kgrank.fusion.history import REFUSED, Decay, Histories, Spans
from kgrank.fusion.item_item import Ridge
from kgrank.fusion.lists import top_n
from kgrank.fusion.metrics import ListMetrics, list_metrics, paired_bootstrap
from kgrank.fusion.model import FusedModel, Head, exclude, only
from kgrank.fusion.queries import only_items
from kgrank.fusion.training import plain_ease
from kgrank.kg.tables import Tables, TablesSettings, read_tables
from kgrank.progress import Progress, silent
from kgrank.serving.asking import Asked, all_events, ask
from kgrank.serving.bundle import Bundle
from kgrank.serving.checks import head_of, task_head
from kgrank.serving.predicting import judge_predictions
from kgrank.serving.training import train

K = (10, 20)
CELLS = 16_000_000  # queries × items scored at a time
OWN_HISTORY = Decay(half_life=60.0 * float(np.log(2.0)))  # e^(-days / 60)
IN_SAMPLE = (
    "the channels were fitted on these rows too, so the figures are too good. For rows they have "
    "not seen, train with --set fit.refit=false, or evaluate on test."
)
OPTIONS = {
    "split": ("test", "valid"),
    "protocol": ("user", "next"),
    "history": ("all", "train"),
    "repeats": ("exclude", "allow", "only"),
    "relevant": ("all", "new"),
    "graph": ("true", "shuffled", "none", "all"),
}

_log = logging.getLogger(__name__)

Scorer = Callable[[Histories, Spans], torch.Tensor]


def evaluate_bundle(
    bundle: Bundle,
    *,
    source: Path | None = None,
    split: str = "test",
    protocol: str = "user",
    history: str = "all",
    repeats: str = "exclude",
    relevant: str = "all",
    graph: str = "true",
    task: str = "rank",
    cache: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Rank all items for every query of a split and compare with what happened.

    Args:
        bundle: what is evaluated.
        source: the tables; where the bundle was trained from if None.
        split: "test" or "valid". Channels fitted again on train + valid (`fit.refit`, the default)
            know the valid rows: then that is said (a warning is logged, `in_sample` is true).
        protocol: "user": one list a user from the bundle's histories, relevant = the user's rows of
            the split; "next": every row of the split is a query, all events of the user before it
            are its history. Where `repeats` is "exclude", an item met before is treated in two
            ways: "next" leaves the met items out of the list but for the row's own, which may be
            found again; "user" leaves all of them out, so that those among the relevant count as
            missed. `met_before` tells of how many queries an answer was met before;
            `relevant="new"` asks for the others alone.
        history: "all" (train + valid) or "train": what lists are made from. Items of either are
            not recommended again.
        repeats: "exclude" lists only items that are not in the history, "allow" all, "only" those.
        relevant: "all" rows of the split, or the "new" ones: items the user had not met.
        graph: "true" evaluates the bundle; "shuffled" and "none" fit again with tails and
            attribute values permuted, or without triples and attributes; "all" does all three and
            tells by a paired bootstrap over users what the true one adds.
        task: whose head lists. Another than "rank" makes only the events of its kinds relevant,
            has the lists of "rank" beside, and tells how good the predictions are; it goes with
            protocol "user", all histories and the true graph.
        cache: folder of text vectors for the fits.
        progress: told of each stage.

    Returns:
        the JSON object of `kgrank evaluate --json`.

    Raises:
        ConfigError: an option is none of the allowed ones, or does not go with the task.
        ModelError: the bundle has no head for the task.
        DataError: the tables are at fault, are not those of the bundle (their train and valid rows
            differ), or the split is empty.
    """
    given = {"split": split, "protocol": protocol, "history": history, "repeats": repeats}
    _check_options({**given, "relevant": relevant, "graph": graph})
    if task != "rank":
        _check_plain({"protocol": protocol, "history": history, "graph": graph}, task)
    head = task_head(bundle, task, repeats)
    tables = source_tables(bundle, source)
    full, splits = all_events(bundle, tables, split)  # other tables are refused before any fit
    in_sample = split == "valid" and bundle.config.fit.refit
    if in_sample:
        _log.warning("split valid: %s", IN_SAMPLE)
    variants = ("true", "shuffled", "none") if graph == "all" else (graph,)
    results, per_query = {}, {}
    for variant in variants:
        fitted = bundle
        if variant != "true":
            fitted = _refit(bundle, tables, variant, cache, progress)
            full, splits = all_events(fitted, tables, split)
        kinds = bundle.model.predictors[head].kinds if task != "rank" else full.kind_names
        asked = ask(fitted, full, splits, split, protocol, history, repeats, relevant, kinds)
        lists = _Lists(asked, repeats, progress)
        scores, result = lists.judge(_model_scores(fitted.model, head), "kgrank")
        if variant == variants[0]:  # no other graph changes them
            progress("baselines", 0, 1)
            result["baselines"] = {
                name: lists.judge(scorer, name)[1]["metrics"]
                for name, scorer in _baselines(fitted, repeats, task).items()
            }
        results[variant], per_query[variant] = result, scores.ndcg[10]
    users = len(np.unique(asked.queries.users))
    shown = {"protocol": protocol, "split": split, "in_sample": in_sample, "users": users}
    counts = {"queries": len(asked.queries), "met_before": asked.met_before}
    out = {**shown, **counts, "history": history, "repeats": repeats, "relevant": relevant}
    out |= results[variants[0]]
    if task != "rank":
        out["task"] = task
        out["prediction"] = judge_predictions(bundle, head, full, splits, split, progress)
    if graph != "true":
        out["graph"] = {name: result["metrics"] for name, result in results.items()}
    if graph == "all":
        out["graph_difference"] = {
            other: _difference(per_query["true"], per_query[other], asked.queries.users)
            for other in variants[1:]
        }
    return out


def valid_lists(
    bundle: Bundle, tables: Tables, progress: Progress = silent
) -> tuple[ListMetrics, npt.NDArray[np.int64]]:
    """How well a bundle lists what each user took on valid, one value a user. No test row is read.

    Args:
        bundle: fitted with `fit.refit` off; otherwise its channels know the valid rows.
        tables: those it was trained on.
        progress: told of each stage.

    Returns:
        metrics of each list of new items, and whose list it is.

    Raises:
        DataError: the tables are not those of the bundle, or there is nothing on valid.
    """
    full, splits = all_events(bundle, tables, "valid")
    given = ("valid", "user", "train", "exclude", "all", full.kind_names)
    asked = ask(bundle, full, splits, *given)
    scores, _ = _Lists(asked, "exclude", progress).judge(
        _model_scores(bundle.model, "new"), "valid"
    )
    return scores, asked.queries.users


def _check_options(given: Mapping[str, str]) -> None:
    for name, value in given.items():
        if value not in OPTIONS[name]:
            allowed = ", ".join(OPTIONS[name])
            raise ConfigError(f"{name}: found {value!r}; allowed: {allowed}. Pass one of them.")


def _check_plain(given: Mapping[str, str], task: str) -> None:
    allowed = {"protocol": "user", "history": "all", "graph": "true"}
    for name, value in given.items():
        if value != allowed[name]:
            found = f"{name}: found {value!r} with task {task!r}"
            raise ConfigError(f"{found}; allowed: {allowed[name]!r}. Leave {name} out.")


def refitted(
    bundle: Bundle,
    tables: Tables,
    seed: int,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Bundle:
    """The bundle fitted again with another seed: of the sampling of queries, and of `[learn]`.

    Args:
        bundle: what is fitted again, with its settings and its split.
        tables: those it was trained on.
        seed: the seed of both.
        cache: folder of text vectors.
        progress: told of each stage.

    Raises:
        DataError: the tables are not those of the bundle.
    """
    all_events(bundle, tables, "valid")  # other tables are refused
    config = bundle.config
    fit, learn = (one.model_copy(update={"seed": seed}) for one in (config.fit, config.learn))
    config = config.model_copy(update={"fit": fit, "learn": learn})
    return _trained(bundle, tables, config, cache, progress)


def source_tables(bundle: Bundle, source: Path | None) -> Tables:
    """The tables that a bundle was trained on.

    Args:
        bundle: which.
        source: where they are; where they were if None.

    Raises:
        ConfigError: they were made in memory.
        DataError: they are at fault.
    """
    where = source or bundle.source
    if source is None and bundle.config.neo4j.uri is not None:
        return read_source(bundle.config.neo4j.uri, bundle.config)
    if where is None:
        raise ConfigError(
            "source: found a bundle of tables made in memory; allowed: a folder of tables. "
            "Name it with --source."
        )
    named = bundle.config.tables if source is None else TablesSettings()
    return read_tables(where, None if named == TablesSettings() else named)  # None: as a toml says


def _refit(
    bundle: Bundle, tables: Tables, variant: str, cache: Path | None, progress: Progress
) -> Bundle:
    config = bundle.config
    pictures = () if config.image.model is None else (config.image.column,)
    kept = (*pictures, *config.text.fields)  # what is read as a picture or a text stays
    if variant == "shuffled":
        changed = tables.with_shuffled_graph(config.fit.seed, keep=kept)
    else:
        changed = tables.without_graph(keep=kept)
        update = {"bins": {}, "categorical": (), "ignore": config.text.fields}  # and is no fact
        config = config.model_copy(update={"kg": config.kg.model_copy(update=update)})
    return _trained(bundle, changed, config, cache, progress)


def _trained(
    bundle: Bundle, tables: Tables, config: Config, cache: Path | None, progress: Progress
) -> Bundle:
    """Another fit of the bundle's tables, with its cuts and its rules.

    Rules change no score, and may name facts that such tables have not.
    """
    split = replace(tables, events=bundle.cuts.apply(tables.events))
    fitted = train(split, config, cache=cache, progress=progress, rules=bundle.rules)
    return replace(fitted, cuts=bundle.cuts)


@dataclass(frozen=True)
class _Lists:
    """Lists of any scorer for the same queries, and their metrics."""

    asked: Asked
    repeats: str
    progress: Progress

    def judge(self, scorer: Scorer, name: str) -> tuple[ListMetrics, dict[str, Any]]:
        """Metrics of each query, and the summary."""
        queries = self.asked.queries
        top, first = self._rank(scorer, name)
        n_items = queries.histories.n_items
        scores = replace(list_metrics(top, queries.relevant, K), reciprocal_rank=first)
        listed = np.unique(top[:, :10])
        coverage = float((listed >= 0).sum() / n_items)
        metrics = {**scores.means(), "coverage@10": coverage}
        cold = only_items(queries.relevant, self.asked.cold)
        of_cold = np.flatnonzero(np.diff(cold.indptr))
        slices: dict[str, Any] = {"cold_items": {"queries": len(of_cold)}}
        if len(of_cold):
            found = list_metrics(top[of_cold], cold[of_cold], K).means()
            found.pop("mrr")
            slices["cold_items"] |= found
        slices["new_users"] = {"queries": int(self.asked.new_user.sum())}
        if self.asked.new_user.any():
            slices["new_users"] |= scores.means(self.asked.new_user)
        return scores, {"metrics": metrics, "slices": slices}

    def _rank(
        self, scorer: Scorer, name: str
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The top max(K) of each query, and 1 / rank of the first relevant item among all."""
        queries = self.asked.queries
        size = max(1, CELLS // queries.histories.n_items)
        tops, firsts = [], []
        for start in range(0, len(queries), size):
            self.progress(f"ranking ({name})", start, len(queries))
            block = queries.take(np.arange(start, min(start + size, len(queries))))
            scores = scorer(block.histories, block.spans)
            if self.repeats == "only":
                scores = only(scores, block.histories.weights(block.spans, Decay()))
            unknown = block.excluded.shape[1] - scores.shape[1]
            if unknown:  # relevant items that no list can hold
                scores = F.pad(scores, (0, unknown), value=-torch.inf)
            scores = exclude(scores, block.excluded)
            tops.append(top_n(scores, max(K))[0].numpy())
            firsts.append(_first_ranks(scores, block.relevant))
        self.progress(f"ranking ({name})", len(queries), len(queries))
        return np.concatenate(tops), np.concatenate(firsts)


def _first_ranks(scores: torch.Tensor, relevant: sp.csr_matrix) -> npt.NDArray[np.float64]:
    """1 / rank of each row's best relevant item in the full ranking; 0 if it is not listed."""
    wanted = torch.from_numpy(relevant.toarray() > 0.0)
    best = scores.masked_fill(~wanted, -torch.inf)
    value, item = best.max(dim=1, keepdim=True)  # of equal ones, the first
    places = torch.arange(scores.shape[1])
    ahead = (scores > value) | ((scores == value) & (places < item))
    rank = ahead.sum(1) + 1
    listed = torch.isfinite(value[:, 0])
    return np.asarray(torch.where(listed, 1.0 / rank.double(), 0.0))


def _model_scores(model: FusedModel, head: Head) -> Scorer:
    return lambda histories, spans: model.scores(histories, spans, head)


def _baselines(bundle: Bundle, repeats: str, task: str) -> dict[str, Scorer]:
    """Popularity and EASE on what the bundle's channels were fitted on; own history for repeats.

    Beside a task that predicts, the lists of "rank" too.
    """
    histories, splits = bundle.numbered_events
    settings, chosen = bundle.config.fit, ~histories.of_kinds((REFUSED,))
    histories, splits = histories.where(chosen), splits[chosen]
    seen = histories if settings.refit else histories.where(splits == 0)
    users = torch.from_numpy(np.asarray(seen.binary().sum(axis=0), np.float32).ravel())
    moments = Evidence.of_events(seen).linear_moments()
    penalty = plain_ease(histories, splits, settings)
    weights = moments.weights(Ridge(penalty), neighbors=settings.neighbors)

    def ease(of: Histories, spans: Spans) -> torch.Tensor:
        met = of.weights(spans, Decay())
        met.data[:] = met.data > 0.0  # but for what was refused
        return torch.from_numpy((met @ weights).toarray())

    rank = {} if task == "rank" else {"rank": _model_scores(bundle.model, head_of(repeats))}
    scorers: dict[str, Scorer] = {
        **rank,
        "popularity": lambda of, spans: users.repeat(len(spans), 1),
        "ease": ease,
    }
    if repeats != "exclude":
        scorers["own_history"] = lambda of, spans: torch.from_numpy(
            of.weights(spans, OWN_HISTORY).toarray()
        )
    return scorers


def _difference(
    ours: npt.NDArray[np.float64], other: npt.NDArray[np.float64], users: npt.NDArray[np.integer]
) -> dict[str, Any]:
    found = paired_bootstrap(ours, other, users)
    interval = [found.low, found.high]
    return {"ndcg@10": found.mean, "interval": interval, "beyond_noise": found.beyond_noise}
