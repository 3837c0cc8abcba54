# SPDX-License-Identifier: Apache-2.0
"""Batch normalization longhand, in float64 NumPy. Imports nothing of ours, and returns copies."""

import numpy as np


def moments(x, axis=-1, weights=None):
    """Mean, population variance and total weight of each channel; one channel axis."""
    x = np.asarray(x).astype(np.float64)
    weights = np.ones_like(x) if weights is None else np.broadcast_to(weights, x.shape).astype(np.float64)
    columns = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
    weights = np.moveaxis(weights, axis, -1).reshape(-1, x.shape[axis])
    means, variances, totals = [], [], []
    for column, weight in zip(columns.T, weights.T, strict=True):
        column, weight = column[weight != 0], weight[weight != 0]
        total = weight.sum()
        mean = (weight * column).sum() / total if total else 0.0
        means.append(mean)
        variances.append((weight * (column - mean) ** 2).sum() / total if total else 0.0)
        totals.append(total)
    return np.array(means), np.array(variances), np.array(totals)


def along(parameter, ndim, axis=-1):
    """A parameter of shape `(channels,)` in a shape that broadcasts against the input."""
    shape = [1] * ndim
    shape[axis] = -1
    return np.asarray(parameter).astype(np.float64).reshape(shape)


def normalize(x, mean, variance, gamma=None, beta=None, epsilon=1e-3, axis=-1):
    x = np.asarray(x).astype(np.float64)
    y = (x - along(mean, x.ndim, axis)) / np.sqrt(along(variance, x.ndim, axis) + epsilon)
    y = y if gamma is None else y * along(gamma, x.ndim, axis)
    return y if beta is None else y + along(beta, x.ndim, axis)


def gradients(x, dy, gamma, epsilon=1e-3, axis=-1, weights=None):
    """dx, dgamma and dbeta of `sum(dy * y)` where `y` was normalized with the statistics of the batch."""
    x, dy = np.asarray(x).astype(np.float64), np.asarray(dy).astype(np.float64)
    mean, variance, total = moments(x, axis, weights)
    x_hat = normalize(x, mean, variance, epsilon=epsilon, axis=axis)
    weights = np.ones_like(x) if weights is None else np.broadcast_to(weights, x.shape).astype(np.float64)
    share = weights / along(total, x.ndim, axis)
    other = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
    sum_dy = dy.sum(other, keepdims=True)
    sum_dy_x_hat = (dy * x_hat).sum(other, keepdims=True)
    inverse = 1 / np.sqrt(along(variance, x.ndim, axis) + epsilon)
    dx = along(gamma, x.ndim, axis) * inverse * (dy - share * sum_dy - share * x_hat * sum_dy_x_hat)
    return dx, sum_dy_x_hat.ravel().copy(), sum_dy.ravel().copy()


def moved(old, new, momentum):
    return np.asarray(old).astype(np.float64) * momentum + np.asarray(new) * (1 - momentum)


def renorm_corrections(mean, variance, renorm_mean, renorm_stddev, limits, epsilon=1e-3):
    deviation = np.sqrt(variance + epsilon)
    divisor = np.maximum(renorm_stddev, np.sqrt(epsilon))
    r = np.clip(deviation / divisor, limits.get("rmin", -np.inf), limits.get("rmax", np.inf))
    d = np.clip((mean - renorm_mean) / divisor, -limits.get("dmax", np.inf), limits.get("dmax", np.inf))
    return r, d
