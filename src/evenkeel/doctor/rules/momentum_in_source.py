# SPDX-License-Identifier: Apache-2.0
"""A momentum in the convention of another library.

What it looks for
    A constant momentum or decay that keeps less than half of the old average: in torch more than 0.5, elsewhere less
    than 0.5. Above 0.8, or below 0.2, it is an error; exactly 0 and 1 may be meant, and are a warning.
Why it matters
    The moving statistics are those of the last batch or two, so evaluation is as noisy as one batch; or they never
    leave their start. Torch means by
    momentum the share that is replaced, all others the share that is kept.
What to do
    Write `1 - momentum`: 0.1 in torch is 0.9 in Keras, tf.layers, tf.contrib (decay) and Flax.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.doctor import programs
from evenkeel.doctor.evidence import Source
from evenkeel.doctor.finding import Finding

ID = "EK608"
SEVERITY = "error"

SICK = [
    Source.of("import torch.nn as nn\nbn = nn.BatchNorm2d(64, eps=1e-3, momentum=0.99)"),
    Source.of("from torch import nn\nMOMENTUM = 0.9\nclass B(nn.Module):\n    bn = nn.BatchNorm1d(8, 1e-5, MOMENTUM)"),
    Source.of("import evenkeel.torch\nbn = evenkeel.torch.BatchNorm(64, 1e-3, 0.99, axis=-1)"),
    Source.of("import keras\nbn = keras.layers.BatchNormalization(momentum=0.1)"),
    Source.of("import tensorflow as tf\ny = tf.layers.batch_normalization(x, -1, 0.01, training=phase)"),
    Source.of(
        "import tf_slim as slim\nwith slim.arg_scope([slim.batch_norm], decay=0.003):\n    y = slim.batch_norm(x)"
    ),
    Source.of("from flax import nnx\nbn = nnx.BatchNorm(8, momentum=0.3, rngs=rngs)"),
    Source.of("import torch.nn as nn\nbn = nn.BatchNorm2d(64, momentum=0.0)"),
]
HEALTHY = [
    Source.of("import torch.nn as nn\nbn = nn.BatchNorm2d(64, momentum=1 - 0.99)"),
    Source.of("from torch import nn\nbn = nn.BatchNorm2d(64, momentum=None)"),
    Source.of("from torch import nn\nMOMENTUM = 0.1\nbn = nn.BatchNorm1d(8, 1e-5, MOMENTUM)"),
    Source.of("import keras\nbn = keras.layers.BatchNormalization(momentum=0.8)\nsgd = keras.optimizers.SGD(0.1, 0.1)"),
    Source.of("import tensorflow as tf\ny = tf.contrib.layers.batch_norm(x, decay=0.5)"),
    # A function of the program itself, which may mean anything.
    Source.of("def batch_norm(x, momentum): return x\ny = batch_norm(x, momentum=0.1)"),
]

CERTAIN, LIKELY = 0.2, 0.5  # shares kept, as in EK202


def check(source: Source) -> Iterator[Finding]:
    program = programs.of(source)
    seen = set()
    for item in program.normalizations:
        word = "decay" if item.family in ("slim", "tflearn") else "momentum"
        for value in (end for given in item.arguments.get(word, []) for end in program.values(given)):
            (number,) = program.constants(value)
            if isinstance(number, bool) or not isinstance(number, int | float) or value in seen:
                continue
            seen.add(value)
            kept = 1 - number if item.family == "torch" else number
            certain = 0 < kept < CERTAIN
            if kept < LIKELY or kept == 1:
                usual = 1 - number if certain else 0.1 if item.family == "torch" else 0.9
                meaning = "they never move" if kept == 1 else "few batches make them"
                what = f"{word}={number:g} keeps {kept:.2g} of the old statistics, so {meaning}"
                yield program.finding(ID, value, what, f"{word}={usual:g}", "error" if certain else "warning")
