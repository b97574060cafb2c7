"""TF-IDF: what a text says, by the words that few others use.

Weight of a term in a text = tf · idf, with idf = ln((1 + n) / (1 + df)) + 1 over n texts of which
df hold the term (Spärck Jones 1972, smoothed as in scikit-learn, whose figures it reproduces), and
each row scaled to length 1, so that the product of two rows is their cosine.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from kgrank.encoders.words import Segmenter, choose_segmenter, tokenize
from kgrank.settings import Section


class TfidfSettings(Section):
    """How words become features.

    Attributes:
        ngrams: the longest term in words: 1 = words, 2 = words and neighbouring pairs.
        min_df: a term in fewer texts than this is left out.
        sublinear: count a repeated term as 1 + ln(count).
        segmenter: how Chinese is cut; "auto" = jieba where it is installed, else characters.
    """

    ngrams: Literal[1, 2] = 2
    min_df: int = Field(default=1, ge=1)
    sublinear: bool = True
    segmenter: Literal["auto", "jieba", "characters"] = "auto"


@dataclass(frozen=True, eq=False)
class TfidfModel:
    """A fitted vocabulary. Its five fields are all there is to save: plain values and one array.

    Attributes:
        terms: (n_terms,) in sorted order; the words of a pair are joined by a space.
        idf: (n_terms,) float32, the inverse document frequency of each term.
        segmenter: how Chinese was cut, and will be.
        ngrams: the longest term in words.
        sublinear: whether a repeated term counts as 1 + ln(count).
    """

    terms: tuple[str, ...]
    idf: np.ndarray
    segmenter: Segmenter
    ngrams: int
    sublinear: bool

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {term: number for number, term in enumerate(self.terms)}

    def transform(self, texts: Sequence[str]) -> sp.csr_array:
        """The texts' features in this vocabulary; unknown terms are left out.

        Returns:
            (n_texts, n_terms) float32 in canonical CSR form, rows of length 1 or all zero.

        Raises:
            ModelError: a text holds Chinese, the segmenter is jieba, and jieba is not installed.
        """
        distinct, rows = _distinct(texts)
        terms_of = _terms_of(self.segmenter, self.ngrams)
        counts = _count(distinct, terms_of, self._numbers.get, len(self.terms))
        return self._weigh(counts)[rows]

    def _weigh(self, counts: sp.csr_array) -> sp.csr_array:
        """Counts (n, n_terms) as TF-IDF rows of length 1, float32."""
        weights = counts.data.astype(np.float64)
        if self.sublinear:
            weights = 1 + np.log(weights)
        weights *= self.idf[counts.indices]
        lengths = np.diff(counts.indptr)
        row_of = np.repeat(np.arange(counts.shape[0]), lengths)
        norms = np.sqrt(np.bincount(row_of, weights**2, minlength=counts.shape[0]))
        weights /= norms[row_of]
        data = weights.astype(np.float32)
        return sp.csr_array((data, counts.indices, counts.indptr), shape=counts.shape)


@dataclass(frozen=True, eq=False)
class TfidfFeatures:
    """The features of the texts a vocabulary was fitted on.

    Attributes:
        matrix: (n_texts, n_terms) float32 in canonical CSR form, rows of length 1 or all zero.
        model: the vocabulary, which gives features to new texts.
    """

    matrix: sp.csr_array
    model: TfidfModel

    @property
    def terms(self) -> tuple[str, ...]:
        """(n_terms,) the columns of `matrix`, sorted."""
        return self.model.terms


def tfidf(texts: Sequence[str], settings: TfidfSettings | None = None) -> TfidfFeatures:
    """Fit TF-IDF on texts, one row each. The same texts give the same bytes in every process.

    Raises:
        ModelError: a text holds Chinese, the settings name jieba, and jieba is not installed.
    """
    settings = settings or TfidfSettings()
    segmenter = choose_segmenter() if settings.segmenter == "auto" else settings.segmenter
    distinct, rows = _distinct(texts)
    seen: dict[str, int] = {}

    def number(term: str) -> int:
        return seen.setdefault(term, len(seen))

    counts = _count(distinct, _terms_of(segmenter, settings.ngrams), number, None)
    repeats = np.bincount(rows, minlength=len(distinct))
    holders = np.repeat(repeats, np.diff(counts.indptr))
    df = np.bincount(counts.indices, holders, minlength=len(seen))

    terms = sorted(term for term, column in seen.items() if df[column] >= settings.min_df)
    columns = np.array([seen[term] for term in terms], dtype=np.int32)
    idf = (np.log((1 + len(texts)) / (1 + df[columns])) + 1).astype(np.float32)
    model = TfidfModel(tuple(terms), idf, segmenter, settings.ngrams, settings.sublinear)
    kept = sp.csr_array(counts[:, columns])
    kept.sort_indices()
    return TfidfFeatures(model._weigh(kept)[rows], model)


def _distinct(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Each text once, in order of first sight, and the place of every text among them."""
    places: dict[str, int] = {}
    rows = [places.setdefault(text, len(places)) for text in texts]
    return list(places), np.array(rows, dtype=np.int32)


def _terms_of(segmenter: Segmenter, ngrams: int) -> Callable[[str], list[str]]:
    """The cutter of a text into its terms: words, and neighbouring pairs if `ngrams` is 2."""

    def terms_of(text: str) -> list[str]:
        words = tokenize(text, segmenter)
        if ngrams == 1:
            return words
        return words + [f"{first} {second}" for first, second in pairwise(words)]

    return terms_of


def _count(
    texts: Sequence[str],
    terms_of: Callable[[str], list[str]],
    number: Callable[[str], int | None],
    n_terms: int | None,
) -> sp.csr_array:
    """How often each text holds each term that `number` knows.

    Returns:
        (n_texts, n_terms) int32 in canonical CSR form; n_terms None = one more than the largest
        number met.
    """
    columns = array("q")
    ends = array("q", [0])
    for text in texts:
        columns.extend(n for n in map(number, terms_of(text)) if n is not None)
        ends.append(len(columns))
    if n_terms is None:
        n_terms = max(columns, default=-1) + 1
    index = sp.get_index_dtype(maxval=max(len(columns), n_terms))  # int32 wherever it suffices
    counts = sp.csr_array(
        (np.ones(len(columns), np.int32), np.array(columns, index), np.array(ends, index)),
        shape=(len(texts), n_terms),
    )
    counts.sum_duplicates()
    return counts
