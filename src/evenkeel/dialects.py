# SPDX-License-Identifier: Apache-2.0
"""What each library means by its words, and what it takes for granted: one row each."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Dialect(NamedTuple):
    """How one library writes batch normalization down.

    momentum_word: what it calls its number; `kept` says whether that is the share of the old average that is kept,
        as in this library, or the share that is replaced.
    momentum, epsilon, center, scale: its defaults; `momentum` in its own sense.
    keeps: what the moving variance was divided by: "population" (n), "sample" (n - 1), or "path" where it depends on
        which code served the call.
    names: its names of gamma, beta, moving mean and moving variance, in the order in which it stores them.
    """

    momentum_word: str
    kept: bool
    momentum: float
    epsilon: float
    center: bool
    scale: bool
    keeps: Literal["population", "sample", "path"]
    names: tuple[str, ...]

    @property
    def kept_share(self) -> float:
        """The default momentum in this library's sense.

        Example:
            >>> DIALECTS["torch"].kept_share, DIALECTS["keras"].kept_share
            (0.9, 0.99)
        """
        return self.momentum if self.kept else 1 - self.momentum


_KERAS = ("gamma", "beta", "moving_mean", "moving_variance")
_CONTRIB = ("beta", "gamma", "moving_mean", "moving_variance")

DIALECTS = {
    "keras": Dialect("momentum", True, 0.99, 1e-3, True, True, "population", _KERAS),
    "tf.keras": Dialect("momentum", True, 0.99, 1e-3, True, True, "path", _KERAS),
    "tf.layers": Dialect("momentum", True, 0.99, 1e-3, True, True, "path", _KERAS),
    "tf.contrib.layers": Dialect("decay", True, 0.999, 1e-3, True, False, "path", _CONTRIB),
    "tflearn": Dialect("decay", True, 0.9, 1e-5, True, True, "population", _CONTRIB),
    "tensorpack": Dialect(
        "momentum", True, 0.9, 1e-5, True, True, "path", ("beta", "gamma", "mean/EMA", "variance/EMA")
    ),
    "torch": Dialect(
        "momentum", False, 0.1, 1e-5, True, True, "sample", ("weight", "bias", "running_mean", "running_var")
    ),
    "flax": Dialect("momentum", True, 0.99, 1e-5, True, True, "population", ("scale", "bias", "mean", "var")),
}
"""By name. `keeps` of "path": tf.keras and tf.layers keep the sample variance where the fused operation served (rank 4;
rank 5 too in tf.keras 2.x), contrib there and for rank 2, tensorpack for rank 4."""


class ContribPath(NamedTuple):
    """How one way through `tf.contrib.layers.batch_norm` shows from outside.

    order: in which its variables are made.
    keeps: what the moving variance was divided by; "path" is that of `tf.layers`.
    widens: variables are float32 for 16-bit inputs; otherwise of the type of the inputs.
    regularizes: `param_regularizers` apply.
    """

    order: tuple[str, ...]
    keeps: Literal["population", "sample", "path"]
    widens: bool
    regularizes: bool


CONTRIB = {
    "fused": ContribPath(_CONTRIB, "sample", True, True),
    "core": ContribPath(_KERAS, "path", True, True),
    "legacy": ContribPath(_CONTRIB, "population", False, False),
}
"""`"fused"`: two dimensions; four with updates elsewhere or a debiased mean. `"core"`, by the layer of `tf.layers`:
what is left with updates in UPDATE_OPS. `"legacy"`: all else, weights among it."""
