# SPDX-License-Identifier: Apache-2.0
"""`tf.contrib`: what of it stands round batch normalization."""

from __future__ import annotations

import importlib
from typing import Any

from evenkeel.tf1.contrib.paths import missing

_MODULES = ("framework", "layers", "losses", "metrics", "opt", "slim", "training")
_missing = missing(
    __name__,
    {
        "autograph": "tf.autograph",
        "cluster_resolver": "tf.distribute.cluster_resolver",
        "crf": "the package tensorflow-addons, or a release of it that you keep",
        "data": "tf.data.experimental",
        "distribute": "tf.distribute",
        "eager": "tf.GradientTape, tf.function",
        "estimator": "tf.estimator",
        "feature_column": "tf.feature_column",
        "image": "tf.image",
        "learn": "tf.estimator",
        "lite": "tf.lite",
        "lookup": "tf.lookup",
        "quantize": "tf.quantization",
        "distributions": "tf.distributions, or the package tensorflow-probability",
        "rnn": "tf.nn.dynamic_rnn or tf.nn.static_rnn with a cell of your own; TensorFlow's cells want Keras 2",
        "saved_model": "tf.saved_model",
        "seq2seq": "tf.nn.dynamic_rnn and a loop",
        "signal": "tf.signal",
        "stateless": "tf.random.stateless_normal and its family",
        "summary": "tf.summary",
        "tpu": "tf.tpu",
        "util": "tf.make_tensor_proto, tf.make_ndarray",
    },
)


def __getattr__(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}") if name in _MODULES else _missing(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
