from math import sqrt

import numpy as np
import pytest
from numpy.testing import assert_allclose

from kgrank.encoders.whitening import whiten
from kgrank.errors import ModelError


def cone(n: int = 400, d: int = 6) -> np.ndarray:
    """Rows crowded around one direction, with very different spread along the axes."""
    generator = np.random.default_rng(5)
    rows = generator.normal(size=(n, d)) * np.geomspace(1, 0.05, d) + 5
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_worked_by_hand() -> None:
    """(3,1), (1,1), (2,2), (2,0): mean (2, 1); covariance diag(.5, .5) of ±1 along each axis.

    So each axis is divided by sqrt(.5), and (5, 5) - (2, 1) = (3, 4) becomes (3, 4) / 5.
    """
    fitted = whiten(np.array([[3, 1], [1, 1], [2, 2], [2, 0]], dtype=np.float32), shrinkage=0)
    assert_allclose(fitted.mean, [2, 1])
    assert_allclose(np.abs(fitted.transform).sum(axis=0), [sqrt(2), sqrt(2)], rtol=1e-6)
    whitened = fitted.apply(np.array([[5, 5], [5, -3]]))
    assert_allclose(np.sort(np.abs(whitened), axis=1), [[0.6, 0.8], [0.6, 0.8]], rtol=1e-6)
    assert_allclose(whitened[0] @ whitened[1], (9 - 16) / 25, atol=1e-6)


def test_no_direction_is_favoured_afterwards() -> None:
    vectors = cone()
    fitted = whiten(vectors, shrinkage=0)
    turned = (vectors - fitted.mean) @ fitted.transform
    assert_allclose(np.cov(turned.T, bias=True), np.eye(len(turned.T)), atol=2e-3)
    assert (vectors @ vectors.T).min() > 0.8
    cosines = fitted.apply(vectors) @ fitted.apply(vectors).T
    assert abs(cosines.mean()) < 0.01


def test_shrinkage_keeps_narrow_axes_narrow() -> None:
    vectors = cone()
    spread = [
        ((vectors - fitted.mean) @ fitted.transform).std(axis=0)
        for fitted in (whiten(vectors, shrinkage=0.3), whiten(vectors, shrinkage=1))
    ]
    assert (np.diff(spread[0]) < 0).all()
    widths = np.sqrt(np.linalg.eigvalsh(np.cov(vectors.T, bias=True)))[::-1][: len(spread[1])]
    assert_allclose(spread[1] / spread[1][0], widths / widths[0], rtol=1e-3)


def test_rows_come_out_float32_of_length_one_and_zero_rows_stay_zero() -> None:
    vectors = cone()
    vectors[[3, 7]] = 0
    fitted = whiten(vectors)
    whitened = fitted.apply(vectors)
    assert whitened.dtype == np.float32
    expected = np.ones(len(vectors))
    expected[[3, 7]] = 0
    assert_allclose(np.linalg.norm(whitened, axis=1), expected, atol=1e-6)
    assert not fitted.apply(fitted.mean[None].astype(np.float64)).any()  # the mean says nothing


def test_repeated_and_empty_rows_and_their_order_change_nothing() -> None:
    vectors = cone()
    fitted = whiten(vectors)
    zeros = np.zeros((9, 6), dtype=np.float32)
    again = whiten(np.concatenate([vectors[:50], zeros, vectors[::-1], vectors[:5]]))
    assert (again.mean == fitted.mean).all()
    assert (again.transform == fitted.transform).all()


def test_signs_are_fixed() -> None:
    transform = whiten(cone()).transform
    largest = np.abs(transform).argmax(axis=0)
    assert (transform[largest, np.arange(transform.shape[1])] > 0).all()


def test_dim_keeps_the_widest_axes() -> None:
    vectors = cone()
    assert (whiten(vectors, dim=2).transform == whiten(vectors).transform[:, :2]).all()
    assert whiten(vectors, dim=2).apply(vectors).shape == (400, 2)


def test_fewer_rows_than_dimensions() -> None:
    """n distinct rows span n - 1 axes around their mean; the rest carry no variance."""
    vectors = cone()[:4]
    fitted = whiten(vectors)
    assert fitted.transform.shape == (6, 3)
    assert np.isfinite(fitted.apply(cone())).all()


@pytest.mark.parametrize("rows", [0, 1])
def test_too_little_to_whiten_only_scales(rows: int) -> None:
    vectors = np.repeat(cone()[:1], rows * 3, axis=0).reshape(-1, 6)
    new = np.array([[3.0, 4, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    assert_allclose(
        whiten(vectors).apply(new), [[0.6, 0.8, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], rtol=1e-6
    )


def test_what_cannot_be_whitened_is_refused() -> None:
    vectors = cone()
    with pytest.raises(ModelError, match="rows of 6 numbers"):
        whiten(vectors).apply(vectors[:, :5])
    with pytest.raises(ModelError, match="shrinkage=2"):
        whiten(vectors, shrinkage=2)
    with pytest.raises(ModelError, match="dim=0"):
        whiten(vectors, dim=0)
    vectors[2, 3] = np.nan
    with pytest.raises(ModelError, match="finite"):
        whiten(vectors)
