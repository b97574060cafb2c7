"""Logistic and least-squares regression with weighted rows, a ridge and lower bounds."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import lsq_linear
from scipy.special import expit

Doubles = npt.NDArray[np.float64]
Loss = Literal["logistic", "squared"]

STEPS = 30
ENOUGH = 1e-6  # relative gain of a step below which the search ends


def regression(
    design: Doubles,
    target: Doubles,
    weight: Doubles,
    *,
    loss: Loss,
    penalty: Doubles,
    lower: Doubles,
    offset: Doubles | None = None,
    start: Doubles | None = None,
) -> Doubles:
    """The θ that minimises Σ_r weight_r · loss(x_r · θ + offset_r, y_r) + ½ Σ_j penalty_j · θ_j².

    The loss is −log-likelihood of y in {0, 1} under a sigmoid, or half the squared difference.
    Each Newton step is a bounded least-squares problem (Stark and Parker, 1995), halved until the
    sum falls; both losses are convex, so what is found is the minimum.

    Args:
        design: (n_rows × n_parameters) x.
        target: (n_rows) y.
        weight: (n_rows) at least 0.
        loss: "logistic" or "squared".
        penalty: (n_parameters) above 0.
        lower: (n_parameters) the least θ; −inf = free.
        offset: (n_rows) what is added to x · θ; nothing if None.
        start: (n_parameters) where to begin, not below `lower`; as near to 0 as allowed if None.

    Returns:
        (n_parameters) θ.
    """
    theta = np.maximum(np.zeros(design.shape[1]) if start is None else start, lower)
    added = np.zeros(len(design)) if offset is None else offset

    def total(theta: Doubles, line: Doubles) -> float:
        each = (
            np.logaddexp(0.0, line) - target * line
            if loss == "logistic"
            else 0.5 * (line - target) ** 2
        )
        return float(weight @ each + 0.5 * penalty @ theta**2)

    line = design @ theta + added
    value = total(theta, line)
    for _ in range(STEPS):
        mean = expit(line) if loss == "logistic" else line
        curve = weight * mean * (1.0 - mean) if loss == "logistic" else weight
        gradient = design.T @ (weight * (mean - target)) + penalty * theta
        hessian = (design.T * curve) @ design
        hessian[np.diag_indices_from(hessian)] += penalty
        root = cholesky(hessian)  # upper: hessian = rootᵀ · root
        wanted = root @ theta - solve_triangular(root, gradient, trans="T")
        step = lsq_linear(root, wanted, (lower, np.inf), method="bvls").x - theta
        along = design @ step
        before, share = value, 1.0
        while True:
            value = total(theta + share * step, line + share * along)
            if value <= before or share < 1e-4:
                break
            share /= 2.0
        if value > before:
            return theta
        theta, line = np.maximum(theta + share * step, lower), line + share * along
        if before - value <= ENOUGH * abs(before):
            break
    return theta
