"""How well a head predicts what it has not seen: probabilities and ratings beside plain guesses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from kgrank.fusion.calibration import auc, calibration_error, log_loss
from kgrank.fusion.evidence import SPLITS
from kgrank.fusion.history import DAY, Histories
from kgrank.fusion.model import Head, exclude
from kgrank.fusion.outcomes import MeanRatings, outcomes_of, rating_errors, task_queries, window
from kgrank.fusion.prediction import Bounded, Doubles, Link, Logistic
from kgrank.fusion.queries import Queries
from kgrank.fusion.tasks import LISTED
from kgrank.progress import Progress
from kgrank.serving.bundle import Bundle

PAIRS = 20_000_000  # users are drawn so that no more pairs than that are looked at
CELLS = 4_000_000  # queries × items scored at a time


def judge_predictions(
    bundle: Bundle,
    head: Head,
    full: Histories,
    splits: npt.NDArray[np.int8],
    split: str,
    progress: Progress,
) -> dict[str, Any]:
    """Compare what a head predicts at the end of what is known with what the split holds.

    All users with a history count, whether or not they have rows of the split, and of a split by
    time only as many days of it as the head's window has.

    Args:
        bundle: with the head.
        head: one that predicts.
        full: all events, numbered as the bundle numbers them; what it does not know comes after.
        splits: (n_events) 0 = train, 1 = valid, 2 = test.
        split: "test" or "valid".
        progress: told of users.

    Returns:
        of a probability `pairs` (of a conversion those that were clicked), `hits`, `share`,
        `mean_probability`, `auc`, `log_loss` (and that of guessing `share` throughout), the
        expected calibration error `ece`, the same of the first ten of each list (`ece@10`; not of a
        conversion), and both before calibration; `days` of what is known of the window. Of a rating
        `pairs`, `rmse`, `mae`, and the same of plain guesses.
    """
    predictor, items = bundle.model.predictors[head], np.arange(len(bundle.items))
    known = full.where(splits < SPLITS.index(split)).of_items(items)
    later = full.where(splits == SPLITS.index(split)).of_items(items)
    days = window(known, later)
    if days is not None and predictor.days is not None:
        later = later.where(later.times <= known.newest + predictor.days * DAY)
        days = min(days, predictor.days)
    queries = task_queries(known, predictor.lists)
    outcomes = outcomes_of(head, later, predictor.kinds, queries, predictor.given)
    if head in ("rating", "conversion"):
        some = np.flatnonzero(np.diff(outcomes.indptr))
        queries, outcomes = queries.take(some), outcomes[some]
    n = max(1, PAIRS // len(items))
    if len(queries) > n:
        chosen = np.sort(
            np.random.default_rng(bundle.config.fit.seed).permutation(len(queries))[:n]
        )
        queries, outcomes = queries.take(chosen), outcomes[chosen]
    if head == "rating":
        return _of_ratings(bundle, queries, outcomes, progress)
    if head == "conversion":
        found = _scores_at(bundle, head, queries, outcomes, progress)
        return {"days": days, **_figures(predictor.link, {"": (found, outcomes.data)})}
    return {"days": days, **_of_events(bundle, head, queries, outcomes, progress)}


def _of_events(
    bundle: Bundle, head: Head, queries: Queries, outcomes: sp.csr_matrix, progress: Progress
) -> dict[str, Any]:
    link = bundle.model.predictors[head].link
    scores, hits, top_scores, top_hits = [], [], [], []
    for rows, block, found in _scored(bundle, head, queries, progress):
        happened = torch.from_numpy(outcomes[rows].toarray() > 0.0)
        allowed = exclude(found.clone(), block.excluded)
        best = allowed.topk(min(LISTED, found.shape[1]), dim=1).indices
        listed = torch.isfinite(allowed.gather(1, best))
        scores.append(found[allowed.isfinite()])
        hits.append(happened[allowed.isfinite()])
        top_scores.append(found.gather(1, best)[listed])
        top_hits.append(happened.gather(1, best)[listed])
    every, listed_too = (
        (torch.cat(of).double().numpy(), torch.cat(hit).double().numpy())
        for of, hit in ((scores, hits), (top_scores, top_hits))
    )
    return _figures(link, {"": every, f"@{LISTED}": listed_too})


def _figures(link: Link, parts: Mapping[str, tuple[Doubles, Doubles]]) -> dict[str, Any]:
    """What `judge_predictions` tells of a probability.

    Args:
        link: from a score to the probability.
        parts: the scores of pairs and whether each was a hit: under "" of all, and under other
            suffixes of some.
    """
    scores, hits = parts[""]
    if not len(hits):
        return {"pairs": 0}
    share, probability, ones = hits.mean(), link(scores), np.ones(len(hits))
    told = {
        "pairs": len(hits),
        "hits": int(hits.sum()),
        **{f"share{suffix}": float(hit.mean()) for suffix, (_, hit) in parts.items()},
        "mean_probability": float(probability.mean()),
        "auc": auc(scores, hits, ones),
        "log_loss": log_loss(probability, hits, ones),
        "log_loss_of_share": log_loss(np.full(len(ones), share), hits, ones),
    }
    for name, of in (("", link), ("_uncalibrated", Logistic())):
        for suffix, (score, hit) in parts.items():
            told[f"ece{suffix}{name}"] = calibration_error(of(score), hit, np.ones(len(hit)))
    return told


def _of_ratings(
    bundle: Bundle, queries: Queries, outcomes: sp.csr_matrix, progress: Progress
) -> dict[str, Any]:
    predictor, values = bundle.model.predictors["rating"], outcomes.data
    if not len(values) or not isinstance(predictor.link, Bounded):
        return {"pairs": 0}
    scores = _scores_at(bundle, "rating", queries, outcomes, progress)
    query = np.repeat(np.arange(len(queries)), np.diff(outcomes.indptr))
    means = MeanRatings.of(queries.histories, predictor.kinds)
    guesses = means.guesses(queries.users[query], outcomes.indices, predictor.link)
    baselines = {name: rating_errors(guess, values) for name, guess in guesses.items()}
    errors = rating_errors(predictor.link(scores), values)
    return {"pairs": len(values), **errors, "baselines": baselines}


def _scores_at(
    bundle: Bundle, head: Head, queries: Queries, entries: sp.csr_matrix, progress: Progress
) -> Doubles:
    """The head's scores at the entries that are stored, (n_entries) float64, in their order."""
    query = np.repeat(np.arange(len(queries)), np.diff(entries.indptr))
    scores = np.zeros(entries.nnz)
    for rows, _, found in _scored(bundle, head, queries, progress):
        of_block = np.flatnonzero((query >= rows[0]) & (query <= rows[-1]))
        at = query[of_block] - rows[0], entries.indices[of_block]
        scores[of_block] = found.numpy()[at]
    return scores


def _scored(
    bundle: Bundle, head: Head, queries: Queries, progress: Progress
) -> Iterator[tuple[npt.NDArray[np.int64], Queries, torch.Tensor]]:
    """Some queries after the other, with the head's scores of all items."""
    step = max(1, CELLS // len(bundle.items))
    for start in range(0, len(queries), step):
        progress(f"predicting ({head})", start, len(queries))
        rows = np.arange(start, min(start + step, len(queries)))
        block = queries.take(rows)
        yield rows, block, bundle.model.scores(block.histories, block.spans, head)
    progress(f"predicting ({head})", len(queries), len(queries))
