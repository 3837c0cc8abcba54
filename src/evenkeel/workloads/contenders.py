# SPDX-License-Identifier: Apache-2.0
"""Who competes in `evenkeel bench` under each framework, and which answer is right.

Every framework runs as its users run it: TensorFlow in `tf.function`, PyTorch eagerly, JAX in `jax.jit`. The gradient
is the framework's own, and the new moving statistics are stored, or returned where the framework is functional.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

__all__ = [
    "BACKENDS",
    "EPSILON",
    "MOMENTUM",
    "Case",
    "Contender",
    "Data",
    "built",
    "contenders",
    "epoch_stopwatch",
    "networks",
    "wrong",
]

MOMENTUM, EPSILON = 0.99, 1e-3

Role = Literal["ours", "keras", "native"]


class Case(NamedTuple):
    """What is computed.

    shape: of the input, channels last; rank 2 to 5.
    dtype: of the input and the output, `"float32"` or `"bfloat16"`; parameters and statistics are float32.
    training: forward and backward with the statistics of the batch; otherwise forward with the moving statistics.
    """

    shape: tuple[int, ...]
    dtype: str
    training: bool

    @property
    def size(self) -> int:
        """Of a tensor of this shape and type, in bytes."""
        return math.prod(self.shape) * {"float32": 4, "bfloat16": 2}[self.dtype]

    @property
    def passes(self) -> int:
        """How often a step must read or write such a tensor, unless it keeps it in a cache.

        Training reads x for the statistics; reads x again and writes y; reads x and dy for dgamma and dbeta; reads them
        again and writes dx: 8. Inference reads x and writes y: 2.
        """
        return 8 if self.training else 2


class Data(NamedTuple):
    """Inputs of a case. Float32, every value of `x` and `dy` one that the type of the case has.

    x, dy: the input, the gradient by the output; shape of the case.
    gamma, beta, moving_mean, moving_variance: shape `(channels,)`.
    """

    x: np.ndarray
    dy: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    moving_mean: np.ndarray
    moving_variance: np.ndarray

    @classmethod
    def of(cls, case: Case, *, seed: int = 0) -> Data:
        """Mild data: means within 1 of zero, variances near 2."""
        random = np.random.default_rng(seed)
        channels = case.shape[-1]

        def vector(low: float, high: float) -> np.ndarray:
            return random.uniform(low, high, channels).astype(np.float32)

        def tensor() -> np.ndarray:
            return random.standard_normal(case.shape, np.float32)

        round_off = _to_bfloat16 if case.dtype == "bfloat16" else np.asarray
        x = round_off(tensor() * vector(1.2, 1.6) + vector(-1, 1))
        return cls(x, round_off(tensor()), vector(0.5, 1.5), vector(-1, 1), vector(-1, 1), vector(1.2, 2.5))


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, in float32; a tie goes up."""
    return ((values.view(np.uint32) + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)


class Answer(NamedTuple):
    """What a step gives; all but `y` are None for inference.

    y, dx: shape of the case.
    dgamma, dbeta, moving_mean, moving_variance: shape `(channels,)`.
    """

    y: Any
    dx: Any = None
    dgamma: Any = None
    dbeta: Any = None
    moving_mean: Any = None
    moving_variance: Any = None


class Contender(NamedTuple):
    """Somebody's batch norm, ready to run a case.

    role: what it is compared as. Of two with one role the faster counts.
    name: what its users call it.
    step: runs once, returns when the work is done. It goes on from the moving statistics it left.
    numpy: makes float32 NumPy of what `step` returns.
    divisor: of the squares in the moving variance, n ("population") or n - 1 ("sample").
    """

    role: Role
    name: str
    step: Callable[[], Answer]
    numpy: Callable[[Any], np.ndarray]
    divisor: Literal["population", "sample"]


def contenders(backend: str, case: Case, data: Data) -> Iterator[Contender]:
    """Everybody who competes under a framework, in a process whose Keras runs on it."""
    return _CONTENDERS[backend](case, data)


# The right answer.


def wrong(contender: Contender, case: Case, data: Data, answer: Answer) -> str:
    """What is wrong with the first answer of a contender, with the number; empty if nothing is.

    The right one is longhand in float64. The bounds are for sums of float32 or wider whatever the type of the case,
    for a result rounded to that type, and for intermediate values rounded to it at random.
    """
    for name, exact, bound in _expected(case, data, contender.divisor):
        got = np.asarray(contender.numpy(getattr(answer, name)), np.float64).reshape(exact.shape)
        error = float(np.abs(got - exact).max())
        if not error <= bound:
            return f"{name} is off by {error:.2g}, and {bound:.2g} is allowed"
    return ""


def _expected(case: Case, data: Data, divisor: str) -> Iterator[tuple[str, np.ndarray, float]]:
    """Name, exact value and largest error allowed of each part of an answer."""
    channels = case.shape[-1]
    x, dy = (np.asarray(value, np.float64).reshape(-1, channels) for value in (data.x, data.dy))
    count = len(x)
    mean, variance = (x.mean(0), x.var(0)) if case.training else (data.moving_mean, data.moving_variance)
    inverse = 1 / np.sqrt(np.asarray(variance, np.float64) + EPSILON)
    x_hat = (x - mean) * inverse
    y = x_hat * data.gamma + data.beta

    wide, narrow = 2.0**-24, {"float32": 2.0**-24, "bfloat16": 2.0**-8}[case.dtype]
    # Added pair by pair, or one after the other with roundings that go up as often as down.
    sums = wide * max(8.0, 8 * math.log2(count), 4 * math.sqrt(count))
    largest = 1 + float(np.abs(x_hat).max())
    value = largest * (sums + 4 * narrow)
    yield "y", y.reshape(case.shape), value * float(np.abs(data.gamma).max())
    if not case.training:
        return

    dbeta, dgamma = dy.sum(0), (dy * x_hat).sum(0)
    dx = data.gamma * inverse * (dy - dbeta / count - x_hat * dgamma / count)
    size = np.abs(dy).max() + (np.abs(dbeta).max() + largest * np.abs(dgamma).max()) / count
    yield "dx", dx.reshape(case.shape), (sums + 4 * narrow) * float(np.abs(data.gamma * inverse).max() * size)
    for name, exact, terms in (("dgamma", dgamma, dy * x_hat), ("dbeta", dbeta, dy)):
        # Rounding of the terms adds up like a random walk, rounding of the sum like the sum of all sizes.
        walk = float(np.sqrt(np.square(terms).sum(0)).max())
        yield name, exact, sums * float(np.abs(terms).sum(0).max()) + 4 * narrow * walk
    kept = variance * count / (count - 1) if divisor == "sample" else variance
    for name, old, new in (("moving_mean", data.moving_mean, mean), ("moving_variance", data.moving_variance, kept)):
        exact = MOMENTUM * np.asarray(old, np.float64) + (1 - MOMENTUM) * new
        yield name, exact, 4 * wide * float(np.abs(exact).max()) + (1 - MOMENTUM) * sums * float(np.abs(new).max() + 1)


# The contenders.


def built(kind: Callable[..., Any], case: Case, data: Data, **options: Any) -> Any:
    """A layer of a kind, with the weights of `data`."""
    policy = "float32" if case.dtype == "float32" else "mixed_bfloat16"
    layer = kind(momentum=MOMENTUM, epsilon=EPSILON, dtype=policy, **options)
    layer.build(case.shape)
    layer.set_weights(list(data[2:]))
    return layer


def _layers(case: Case, data: Data) -> Iterator[tuple[Role, str, Any]]:
    """Our layer and Keras's."""
    import keras

    from evenkeel import BatchNormalization

    yield "ours", "evenkeel.BatchNormalization", built(BatchNormalization, case, data)
    yield "keras", "keras.layers.BatchNormalization", built(keras.layers.BatchNormalization, case, data)


def _tensorflow(case: Case, data: Data) -> Iterator[Contender]:
    import tensorflow as tf

    # So a call returns when the work is done.
    assert tf.config.experimental.get_synchronous_execution()
    x, dy = (tf.cast(value, case.dtype) for value in (data.x, data.dy))

    def contender(role, name, forward, gamma, beta, state, divisor):
        @tf.function
        def train(x, dy):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = forward(x)
            return y, *tape.gradient(y, [x, gamma, beta], output_gradients=dy)

        infer = tf.function(forward)

        def step():
            return Answer(*train(x, dy), *state) if case.training else Answer(infer(x))

        return Contender(role, name, step, lambda value: tf.cast(value, "float32").numpy(), divisor)

    for role, name, layer in _layers(case, data):
        gamma, beta, *state = (weight.value for weight in layer.weights)
        forward = functools.partial(layer, training=case.training)
        yield contender(role, name, forward, gamma, beta, state, "population")

    gamma, beta, mean, variance = map(tf.Variable, data[2:])
    rank_4 = case.shape if len(case.shape) == 4 else (case.shape[0], 1, math.prod(case.shape[1:-1]), case.shape[-1])

    def fused(x):
        moving = {"exponential_avg_factor": 1 - MOMENTUM} if case.training else {}
        y, new_mean, new_variance = tf.compat.v1.nn.fused_batch_norm(
            tf.reshape(x, rank_4), gamma, beta, mean, variance, EPSILON, is_training=case.training, **moving
        )
        if case.training:
            mean.assign(new_mean)
            variance.assign(new_variance)
        return tf.reshape(y, case.shape)

    yield contender("native", "tf.compat.v1.nn.fused_batch_norm", fused, gamma, beta, (mean, variance), "sample")


def _jax(case: Case, data: Data) -> Iterator[Contender]:
    import jax
    import jax.numpy as jnp

    x, dy = (jnp.asarray(value, case.dtype) for value in (data.x, data.dy))

    def contender(role, name, forward, parameters, state):
        """`forward(parameters, state, x)` gives `y` and the new state; both are a list of two vectors."""

        @jax.jit
        def train(parameters, state, x, dy):
            y, pull_back, state = jax.vjp(lambda p, x: forward(p, state, x), parameters, x, has_aux=True)
            (dgamma, dbeta), dx = pull_back(dy)
            return Answer(y, dx, dgamma, dbeta, *state)

        @jax.jit
        def infer(parameters, state, x):
            return Answer(forward(parameters, state, x)[0])

        def step():
            nonlocal state
            if not case.training:
                return jax.block_until_ready(infer(parameters, state, x))
            answer = jax.block_until_ready(train(parameters, state, x, dy))
            state = [answer.moving_mean, answer.moving_variance]
            return answer

        return Contender(role, name, step, lambda value: np.asarray(value, np.float32), "population")

    for role, name, layer in _layers(case, data):
        gamma, beta, *state = (jnp.asarray(value) for value in data[2:])
        stateless = functools.partial(layer.stateless_call, training=case.training)
        yield contender(role, name, stateless, [gamma, beta], state)

    try:
        from flax import nnx
    except ImportError:
        return
    normalization = nnx.BatchNorm(
        case.shape[-1],
        use_running_average=not case.training,
        momentum=MOMENTUM,
        epsilon=EPSILON,
        dtype=case.dtype,
        rngs=nnx.Rngs(0),
    )
    graph, _ = nnx.split(normalization)

    def flax(parameters, state, x):
        kinds = {"scale": nnx.Param, "bias": nnx.Param, "mean": nnx.BatchStat, "var": nnx.BatchStat}
        values = zip(kinds.items(), (*parameters, *state), strict=True)
        module = nnx.merge(graph, nnx.State({name: kind(value) for (name, kind), value in values}))
        return module(x), [module.mean[...], module.var[...]]

    gamma, beta, *state = (jnp.asarray(value) for value in data[2:])
    yield contender("native", "flax.nnx.BatchNorm", flax, [gamma, beta], state)


def _torch(case: Case, data: Data) -> Iterator[Contender]:
    import torch

    dtype = getattr(torch, case.dtype)
    x, dy = (torch.from_numpy(value).to(dtype) for value in (data.x, data.dy))

    def contender(role, name, forward, x, dy, weights, divisor, numpy):
        x = x.detach().requires_grad_(case.training)
        gamma, beta, *state = weights

        def train():
            y = forward(x)
            return Answer(y, *torch.autograd.grad(y, (x, gamma, beta), dy), *state)

        @torch.no_grad()
        def infer():
            return Answer(forward(x))

        return Contender(role, name, train if case.training else infer, numpy, divisor)

    def last(value):
        return value.detach().float().numpy()

    for role, name, layer in _layers(case, data):
        weights = [weight.value for weight in layer.weights]
        forward = functools.partial(layer, training=case.training)
        yield contender(role, name, forward, x, dy, weights, "population", last)

    spatial = len(case.shape) - 2

    def first(value):
        """What came back channels first, channels last."""
        return last(value.movedim(1, -1) if value.ndim > 1 else value)

    formats = ("channels last", "channels first") if spatial else ("",)
    for memory in formats:
        module = getattr(torch.nn, f"BatchNorm{max(1, spatial)}d")(case.shape[-1], EPSILON, 1 - MOMENTUM)
        weights = [module.weight, module.bias, module.running_mean, module.running_var]
        with torch.no_grad():
            for weight, value in zip(weights, data[2:], strict=True):
                weight.copy_(torch.from_numpy(value))
        module.train(case.training)
        images = x.movedim(-1, 1), dy.movedim(-1, 1)
        if memory == "channels first":
            images = images[0].contiguous(), images[1].contiguous()
        name = f"torch.nn.{type(module).__name__}{memory and ', ' + memory}"
        yield contender("native", name, module, *images, weights, "sample", first)


_CONTENDERS = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
BACKENDS = tuple(_CONTENDERS)


# The networks.


def epoch_stopwatch() -> Any:
    """A callback whose `seconds` are those of all epochs together, and not of what comes before and after them.

    At the end of `fit`, TensorFlow's iterator over the data waits up to 0.6 s for a thread of its own: as long as an
    epoch here, and nothing to a training run.
    """
    import keras

    class Stopwatch(keras.callbacks.Callback):
        seconds = 0.0

        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds += time.perf_counter() - self.start

    return Stopwatch()


def networks(*, seed: int = 0) -> dict[str, Any]:
    """A small ResNet of 32 x 32 x 3 images in 10 classes: "ours", "keras", and "without" any normalization.

    The first two have the same weights, and Keras's default settings otherwise.
    """
    import keras

    from evenkeel import BatchNormalization
    from evenkeel.workloads.models import resnet, seed_weights

    def theirs(activation=None):
        if activation is None:
            return keras.layers.BatchNormalization()
        return lambda x: keras.layers.Activation(activation)(keras.layers.BatchNormalization()(x))

    result = {}
    for name, normalization in (("ours", BatchNormalization), ("keras", theirs), ("without", keras.layers.Activation)):
        seed_weights(seed)
        result[name] = resnet((32, 32, 3), 10, normalization)
        result[name].compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    result["keras"].set_weights(result["ours"].get_weights())
    return result
