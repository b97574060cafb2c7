import os
import subprocess
import sys
from math import log, sqrt
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from pydantic import ValidationError
from sklearn.feature_extraction.text import TfidfVectorizer

from kgrank.encoders import tfidf as module
from kgrank.encoders.tfidf import TfidfModel, TfidfSettings, tfidf
from kgrank.encoders.words import tokenize

TITLES = [
    "USB charger, white",
    "USB-C charger fast charger",
    "手机 USB 充电器",
    "",
    "USB charger, white",
    "lamp",
]


def test_weights_worked_by_hand() -> None:
    """Two texts, "a b" and "a a"; words alone.

    df(a) = 2, df(b) = 1, so idf(a) = ln(3/3) + 1 = 1 and idf(b) = ln(3/2) + 1 = 1.405.
    Row 1 is (1, 1.405) / sqrt(1 + 1.405²); row 2 has only a, so it is (1, 0) whatever the count.
    """
    features = tfidf(["a b", "a a"], TfidfSettings(ngrams=1))
    b = log(3 / 2) + 1
    assert features.terms == ("a", "b")
    assert_allclose(features.model.idf, [1, b], rtol=1e-6)
    expected = [[1 / sqrt(1 + b * b), b / sqrt(1 + b * b)], [1, 0]]
    assert_allclose(features.matrix.toarray(), expected, rtol=1e-6)


@pytest.mark.parametrize("ngrams", [1, 2])
@pytest.mark.parametrize("min_df", [1, 2])
@pytest.mark.parametrize("sublinear", [True, False])
def test_figures_are_those_of_scikit_learn(ngrams: int, min_df: int, sublinear: bool) -> None:
    settings = TfidfSettings(
        ngrams=ngrams, min_df=min_df, sublinear=sublinear, segmenter="characters"
    )
    reference = TfidfVectorizer(
        tokenizer=lambda text: tokenize(text, "characters"),
        token_pattern=None,
        ngram_range=(1, ngrams),
        min_df=min_df,
        sublinear_tf=sublinear,
    )
    expected = reference.fit_transform(TITLES)
    features = tfidf(TITLES, settings)
    assert list(features.terms) == reference.get_feature_names_out().tolist()
    assert_allclose(features.matrix.toarray(), expected.toarray(), atol=1e-6)
    new = ["fast white lamp", "unheard words"]
    assert_allclose(
        features.model.transform(new).toarray(), reference.transform(new).toarray(), atol=1e-6
    )


def test_rows_are_float32_of_length_one_or_zero() -> None:
    features = tfidf(TITLES)
    assert features.matrix.dtype == np.float32
    assert features.matrix.has_canonical_format
    norms = np.sqrt((features.matrix.toarray() ** 2).sum(axis=1))
    assert_allclose(norms, [1, 1, 1, 0, 1, 1], atol=1e-6)
    unknown = features.model.transform(["nothing known", "\x00", ""])
    assert unknown.shape == (3, len(features.terms))
    assert unknown.nnz == 0


def test_the_fitted_texts_transform_to_the_fitted_matrix_exactly() -> None:
    features = tfidf(TITLES, TfidfSettings(min_df=2))
    again = features.model.transform(TITLES)
    assert (again.toarray() == features.matrix.toarray()).all()


@pytest.mark.parametrize("texts", [[], ["", "…"]])
def test_nothing_to_fit(texts: list[str]) -> None:
    features = tfidf(texts)
    assert features.matrix.shape == (len(texts), 0)
    assert features.model.transform(["usb", "lamp"]).shape == (2, 0)


def test_a_saved_vocabulary_gives_the_same_features(tmp_path: Path) -> None:
    model = tfidf(TITLES, TfidfSettings(segmenter="characters")).model
    table = pd.DataFrame({"term": model.terms, "idf": model.idf})
    table.to_parquet(tmp_path / "terms.parquet")
    read = pd.read_parquet(tmp_path / "terms.parquet")
    loaded = TfidfModel(
        terms=tuple(read["term"]),
        idf=read["idf"].to_numpy(),
        segmenter=model.segmenter,
        ngrams=model.ngrams,
        sublinear=model.sublinear,
    )
    new = ["white 充电器", "fast usb charger"]
    assert (loaded.transform(new).toarray() == model.transform(new).toarray()).all()
    assert loaded.transform(new).nnz > 0


def test_each_distinct_text_is_cut_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[str] = []

    def counting(text: str, segmenter: module.Segmenter) -> list[str]:
        cut.append(text)
        return tokenize(text, segmenter)

    monkeypatch.setattr(module, "tokenize", counting)
    features = tfidf(["lamp", "usb", "lamp"] * 100)
    assert cut == ["lamp", "usb"]
    assert features.matrix.shape[0] == 300
    assert_allclose(features.model.idf, [log(301 / 201) + 1, log(301 / 101) + 1], rtol=1e-6)


def test_the_same_bytes_in_every_process() -> None:
    program = (
        "from hashlib import sha256\n"
        "from kgrank.encoders.tfidf import tfidf, TfidfSettings\n"
        f"f = tfidf({TITLES!r}, TfidfSettings(segmenter='characters'))\n"
        "m = f.matrix\n"
        "parts = (repr(f.terms).encode(), m.data, m.indices, m.indptr, f.model.idf)\n"
        "print(sha256(b''.join(bytes(part) for part in parts)).hexdigest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_the_segmenter_asked_for_is_the_one_kept() -> None:
    assert tfidf(TITLES, TfidfSettings(segmenter="characters")).model.segmenter == "characters"
    assert tfidf(TITLES).model.segmenter == module.choose_segmenter()


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"ngrams": 3}, {"min_df": 0}, {"segmenter": "mecab"}, {"max_df": 5}):
        with pytest.raises(ValidationError):
            TfidfSettings(**wrong)
