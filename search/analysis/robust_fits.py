"""Many small robust least-squares problems at once: a bootstrap is hundreds of fits to a handful of points.

SciPy's ``least_squares`` fits one at a time, and takes some forty times as long for what a scaling study asks; the tests
hold these fits against it.
"""

# B problems, P points, K parameters

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

Predict = Callable[[Values], tuple[Values, Values]]
"""From parameters ``(B, K)`` to predictions ``(B, P)`` and their derivatives ``(B, P, K)``."""

_MOST_STEPS = 300
_ENOUGH = 1e-10
"""A step that lowers the loss by no more than this share of it is the last one."""

_LEAST_DAMPING, _MOST_DAMPING = 1e-9, 1e9


def fit_robustly(
    predict: Predict, y_BP: Values, starts_BK: Values, *, delta: float, bound: float
) -> tuple[Values, Values]:
    """The parameters ``(B, K)``, of absolute values up to ``bound``, that have the lowest Huber loss near their starts, and
    these losses ``(B,)``.

    Levenberg-Marquardt on reweighted residuals: one beyond ``delta`` counts as much less as its share of the loss grows more
    slowly (Huber, Annals of Mathematical Statistics 35, 1964), and a step is taken only where the loss falls.
    """

    def evaluate(x_NK: Values, y_NP: Values) -> tuple[Values, Values, Values]:
        # Far from everything a step may come to what no float holds; its loss is not lower then, and it is not taken.
        with np.errstate(over="ignore", invalid="ignore"):
            predicted_NP, slopes_NPK = predict(x_NK)
            left_NP = predicted_NP - y_NP
            return left_NP, slopes_NPK, _huber(left_NP, delta).sum(axis=1)

    x_BK = starts_BK.copy()
    left_BP, slopes_BPK, loss_B = evaluate(x_BK, y_BP)
    damping_B, going_B = np.full(len(x_BK), 1e-3), np.ones(len(x_BK), dtype=bool)
    for _ in range(_MOST_STEPS):
        now = np.flatnonzero(going_B)
        if not len(now):
            break
        step_NK = _step(left_BP[now], slopes_BPK[now], damping_B[now], delta)
        tried_NK = np.clip(x_BK[now] + step_NK, -bound, bound)
        left_NP, slopes_NPK, loss_N = evaluate(tried_NK, y_BP[now])
        falls_N = loss_N < loss_B[now]
        fallen = now[falls_N]
        enough_N = falls_N & (loss_B[now] - loss_N <= _ENOUGH * loss_B[now])
        x_BK[fallen], left_BP[fallen], slopes_BPK[fallen], loss_B[fallen] = (
            each[falls_N] for each in (tried_NK, left_NP, slopes_NPK, loss_N)
        )
        damping_B[now] = np.clip(damping_B[now] * np.where(falls_N, 1 / 3, 4), _LEAST_DAMPING, None)
        going_B[now] = ~enough_N & (damping_B[now] < _MOST_DAMPING)
    return x_BK, loss_B


def _step(left_NP: Values, slopes_NPK: Values, damping_N: Values, delta: float) -> Values:
    weights_NP = delta / np.maximum(np.abs(left_NP), delta)
    weighted_NPK = slopes_NPK * weights_NP[:, :, None]
    gradient_NK = np.einsum("npk,np->nk", weighted_NPK, left_NP)
    curvature_NKK = np.einsum("npk,npl->nkl", weighted_NPK, slopes_NPK)
    diagonal_NK = np.einsum("nkk->nk", curvature_NKK)
    # A parameter that nothing depends on by now stays where it is.
    damped_NK = damping_N[:, None] * diagonal_NK + 1e-12 * diagonal_NK.max(axis=1, keepdims=True) + 1e-300
    curvature_NKK = curvature_NKK + damped_NK[:, :, None] * np.eye(slopes_NPK.shape[2])
    return -np.linalg.solve(curvature_NKK, gradient_NK[:, :, None])[:, :, 0]


def _huber(left: Values, delta: float) -> Values:
    size = np.abs(left)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
