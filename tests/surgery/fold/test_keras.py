# SPDX-License-Identifier: Apache-2.0
"""Folding in Keras models: the outputs stay, the normalizers go where that is exact, or stay for a reason."""

import numpy as np
import pytest

from conftest import NAME

if NAME == "numpy":
    pytest.skip("Keras models run on a framework", allow_module_level=True)

import keras
from keras import layers

import evenkeel as ek
from evenkeel.errors import InputError, UnequalError
from evenkeel.surgery.fold import algebra
from evenkeel.surgery.fold.keras import copied, narrow_inside, wide

BatchNormalization = keras.layers.BatchNormalization


@pytest.fixture(autouse=True)
def _fresh_names_and_seed():
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


def normalizers(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from normalizers(layer)
        elif isinstance(layer, BatchNormalization):
            yield layer


def scrambled(model):
    """The model with statistics and weights far from their start."""
    generator = np.random.default_rng(1)
    for layer in normalizers(model):
        n = layer.moving_mean.shape
        layer.moving_mean.assign(generator.uniform(-3, 3, n))
        layer.moving_variance.assign(generator.uniform(0.1, 10, n))
        if layer.gamma is not None:
            layer.gamma.assign(generator.uniform(0.5, 2, n) * generator.choice([-1, 1], n))
        if layer.beta is not None:
            layer.beta.assign(generator.normal(size=n))
    return model


def plain(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False)).astype("float64")


def data(model):
    shape = [2, *(9 if size is None else size for size in model.input_shape[1:])]
    return np.random.default_rng(2).normal(size=shape).astype("float32")


def chain(shape, *parts):
    return scrambled(keras.Sequential([keras.Input(shape), *parts]))


# Whole networks.


def resnet():
    x = inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    x = BatchNormalization()(x)
    x = layers.ReLU()(x)
    for filters, strides in ((8, 1), (16, 2)):
        short = x
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        x = ek.BatchNormalization(activation="relu")(x)
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = BatchNormalization()(x)
        if strides > 1:
            short = layers.Conv2D(filters, 1, strides, use_bias=False)(short)
            short = BatchNormalization(scale=False)(short)
        x = layers.ReLU()(layers.Add()([x, short]))
    x = layers.Flatten()(layers.AveragePooling2D(6)(x))
    return keras.Model(inputs, layers.Dense(5)(x)), []


def mobilenet():
    x = inputs = keras.Input((12, 12, 3))
    x = BatchNormalization(name="first")(x)  # a padded convolution follows
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    for filters, strides in ((8, 2), (8, 1)):
        short = x
        x = layers.Conv2D(4 * filters, 1, padding="same", use_bias=False)(x)
        x = BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
        x = layers.ReLU(6.0)(x)
        x = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(x)
        x = BatchNormalization(center=False)(x)
        x = layers.ReLU(6.0)(x)
        x = layers.Conv2D(filters, 1, use_bias=False)(x)
        x = BatchNormalization()(x)
        if short.shape == x.shape:
            x = layers.Add()([short, x])
    return keras.Model(inputs, layers.SeparableConv2D(4, 3)(x)), ["first"]


def densenet():
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same")(x)
    for index in range(2):
        y = BatchNormalization(name=f"shared_{index}")(x)
        y = layers.ReLU()(y)
        y = layers.Conv2D(8, 1, use_bias=False)(y)
        y = ek.BatchNormalization(activation="relu")(y)
        y = layers.Conv2D(4, 3, padding="same")(y)
        x = layers.Concatenate()([x, y])
    x = BatchNormalization(name="transition")(x)  # exact: nothing stands before a convolution that does not pad
    x = layers.Conv2D(8, 1, use_bias=False)(x)
    return keras.Model(inputs, layers.AveragePooling2D(2)(x)), ["shared_0", "shared_1"]


def unet():
    def block(x, filters):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(BatchNormalization()(x))
        return x

    inputs = keras.Input((8, 8, 3))
    top = block(inputs, 6)
    x = block(layers.MaxPooling2D()(top), 12)
    x = layers.Conv2DTranspose(6, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.ReLU()(BatchNormalization()(x))
    x = block(layers.Concatenate()([top, x]), 6)
    return keras.Model(inputs, layers.Conv2D(2, 1)(x)), []


def audio():
    parts = [
        layers.Conv1D(8, 5, padding="causal", dilation_rate=2, use_bias=False),
        BatchNormalization(),
        layers.Activation("tanh"),
        layers.SeparableConv1D(8, 3, padding="same"),
        layers.Identity(),
        BatchNormalization(),
        layers.SpatialDropout1D(0.3),
        layers.Conv1D(8, 3, groups=2, strides=2),
        layers.ReLU(),
        ek.BatchNormalization(renorm=True),
        layers.Dropout(0.5),
        layers.DepthwiseConv1D(3, depth_multiplier=2),
        layers.ReLU(),
        layers.Conv1DTranspose(4, 3, strides=2),
        BatchNormalization(),
        layers.Flatten(),
        layers.Dense(6, use_bias=False),
        BatchNormalization(),
        ek.BatchNormalization(frozen=True),
    ]
    return keras.Sequential([keras.Input((40, 4)), *parts]), []


@pytest.mark.parametrize("network", [resnet, mobilenet, densenet, unet, audio])
def test_whole_networks(network):
    model, stay = network()
    scrambled(model)
    x = data(model)
    folded, report = ek.fold(model, x)
    before, after = plain(model, x), plain(folded, x)
    size = max(1, np.abs(before).max())
    assert np.abs(before - after).max() <= 1e-5 * size
    assert {layer.name for layer in normalizers(folded)} == {left.normalizer for left in report.left} == set(stay)
    doubles = [item for item in report.differences if item.dtype == "float64"]
    assert [item.data for item in doubles] == ["given", "random"]
    assert max(item.largest for item in doubles) <= 1e-12 * size
    assert report.parameters.after < report.parameters.before
    assert report.multiply_adds.after < report.multiply_adds.before
    assert all(left.reason for left in report.left)


# Each layer, on each side.

LAYERS = {
    "Conv1D": ((9, 4), lambda **k: layers.Conv1D(6, 3, **k)),
    "Conv2D": ((9, 9, 4), lambda **k: layers.Conv2D(6, 3, **k)),
    "Conv3D": ((5, 5, 5, 4), lambda **k: layers.Conv3D(6, 2, **k)),
    "grouped": ((9, 9, 4), lambda **k: layers.Conv2D(6, (3, 2), groups=2, **k)),
    "dilated": ((9, 9, 4), lambda **k: layers.Conv2D(6, 3, dilation_rate=2, **k)),
    "strided": ((9, 9, 4), lambda **k: layers.Conv2D(6, 3, strides=2, **k)),
    "DepthwiseConv1D": ((9, 4), lambda **k: layers.DepthwiseConv1D(3, depth_multiplier=3, **k)),
    "DepthwiseConv2D": ((9, 9, 4), lambda **k: layers.DepthwiseConv2D(3, depth_multiplier=2, **k)),
    "SeparableConv1D": ((9, 4), lambda **k: layers.SeparableConv1D(5, 3, depth_multiplier=2, **k)),
    "SeparableConv2D": ((9, 9, 4), lambda **k: layers.SeparableConv2D(5, 3, **k)),
    "Conv1DTranspose": ((9, 4), lambda **k: layers.Conv1DTranspose(6, 3, strides=2, **k)),
    "Conv2DTranspose": ((5, 5, 4), lambda **k: layers.Conv2DTranspose(6, 3, **k)),
    "Conv3DTranspose": ((3, 3, 3, 4), lambda **k: layers.Conv3DTranspose(6, 2, strides=2, **k)),
    "Dense": ((4,), lambda **k: layers.Dense(6, **k)),
    "Dense of a sequence": ((7, 4), lambda **k: layers.Dense(6, **k)),
}


@pytest.mark.parametrize(("name", "bias"), [(name, index % 2 == 0) for index, name in enumerate(LAYERS)])
def test_a_normalizer_after_each_layer(name, bias):
    shape, make = LAYERS[name]
    model = chain(shape, make(use_bias=bias, bias_initializer="normal"), BatchNormalization(name="bn"))
    folded, report = ek.fold(model)
    np.testing.assert_allclose(plain(folded, data(model)), plain(model, data(model)), rtol=1e-4, atol=1e-5)
    assert report.folded[0][::2] == ("bn", "before") and report.left == []


@pytest.mark.parametrize(
    ("name", "bias"), [(name, index % 2 == 1) for index, name in enumerate(LAYERS) if "Transpose" not in name]
)
def test_a_normalizer_before_each_layer(name, bias):
    shape, make = LAYERS[name]
    layer = make(use_bias=bias, bias_initializer="normal")
    model = chain(shape, BatchNormalization(name="bn"), layer, layers.ReLU())
    folded, report = ek.fold(model)
    np.testing.assert_allclose(plain(folded, data(model)), plain(model, data(model)), rtol=1e-4, atol=2e-5)
    assert report.folded[0][::2] == ("bn", "after") and report.left == []


@pytest.mark.parametrize(
    "padded",
    [
        lambda: layers.Conv2DTranspose(6, 3),
        lambda: layers.Conv2DTranspose(6, 1, strides=2),
        lambda: layers.Conv2D(6, 3, padding="same"),
        lambda: layers.DepthwiseConv2D(3, padding="same"),
        lambda: layers.SeparableConv2D(6, 3, padding="same"),
    ],
)
@pytest.mark.parametrize("offset", [True, False])
def test_padding_is_exact_without_an_offset_only(padded, offset):
    model = keras.Sequential([keras.Input((6, 6, 4)), layers.ReLU(), BatchNormalization(center=False), padded()])
    normalizer = next(normalizers(model))
    normalizer.moving_variance.assign([0.1, 1.0, 4.0, 9.0])
    if offset:
        normalizer.moving_mean.assign([0.0, 0.0, 0.0, 1.0])
    folded, report = ek.fold(model)
    np.testing.assert_allclose(plain(folded, data(model)), plain(model, data(model)), rtol=1e-4, atol=1e-5)
    assert len(report.folded) == (not offset)
    if offset:
        assert "pads, and its offset is not 0" in report.left[0].reason


@pytest.mark.parametrize("kernel", [1, (1, 1)])
def test_one_by_one_never_pads(kernel):
    model = chain((6, 6, 4), BatchNormalization(), layers.Conv2D(3, kernel, 2, padding="same"))
    assert ek.fold(model)[1].left == []


@pytest.mark.parametrize(
    ("equation", "output", "bias_axes", "shape", "axis"),
    [
        ("ab,bc->ac", 6, None, (4,), -1),
        ("abc,cd->abd", (None, 6), "d", (7, 4), -1),
        ("abc,cd->abd", (7, 6), "bd", (7, 4), -1),
        ("...x,xy->...y", 6, "y", (7, 4), -1),
        ("abc,cde->abde", (None, 2, 3), "de", (7, 4), -1),
        ("abc,cde->abde", (None, 2, 3), "e", (7, 4), -2),
        ("abcd,cde->abe", (None, 6), "e", (5, 2, 4), -1),
        ("abc,bc->abc", (7, 4), None, (7, 4), -1),
    ],
)
@pytest.mark.parametrize("side", ["before", "after"])
def test_einsum(equation, output, bias_axes, shape, axis, side):
    layer = layers.EinsumDense(equation, output, bias_axes=bias_axes, bias_initializer="normal")
    normalizer = BatchNormalization(axis=axis if side == "before" else -1)
    model = chain(shape, layer, normalizer) if side == "before" else chain(shape, normalizer, layer, layers.ReLU())
    folded, report = ek.fold(model)
    np.testing.assert_allclose(plain(folded, data(model)), plain(model, data(model)), rtol=1e-4, atol=1e-5)
    assert report.folded[0].side == side


def test_a_sum_over_what_the_kernel_does_not_have_is_left_alone():
    model = chain((7, 4), BatchNormalization(), layers.EinsumDense("abc,cd->ad", 6))
    assert "is not that of the channels" in ek.fold(model)[1].left[0].reason


@pytest.mark.skipif(NAME == "tensorflow", reason="TensorFlow's float64 convolutions want channels last on a CPU")
@pytest.mark.parametrize(
    "layer",
    [
        lambda **k: layers.Conv2D(6, 3, groups=2, **k),
        lambda **k: layers.Conv2DTranspose(6, 3, **k),
        lambda **k: layers.DepthwiseConv2D(3, depth_multiplier=2, **k),
        lambda **k: layers.SeparableConv2D(6, 3, depth_multiplier=2, **k),
    ],
)
def test_channels_first(layer):
    first = {"data_format": "channels_first"}
    model = chain((4, 6, 6), layer(**first), ek.BatchNormalization(axis=1), layers.ReLU(), BatchNormalization(axis=1),
                  layers.Conv2D(2, 3, **first))  # fmt: skip
    folded, report = ek.fold(model)
    np.testing.assert_allclose(plain(folded, data(model)), plain(model, data(model)), rtol=1e-4, atol=1e-5)
    assert report.left == []


# Round the layers.


def test_chains_fold_from_both_sides():
    chained = [BatchNormalization(name=name) for name in "abcd"]
    model = chain((6, 6, 4), chained[0], chained[1], layers.Conv2D(5, 3), chained[2], chained[3], layers.ReLU())
    folded, report = ek.fold(model)
    np.testing.assert_allclose(plain(folded, data(model)), plain(model, data(model)), rtol=1e-4, atol=1e-5)
    assert [item[::2] for item in report.folded] == [("c", "before"), ("d", "before"), ("b", "after"), ("a", "after")]


@pytest.mark.parametrize(
    "between",
    [
        layers.Identity,
        lambda: layers.Dropout(0.5),
        lambda: layers.GaussianNoise(1.0),
        lambda: layers.Activation("linear"),
    ],
)
def test_what_does_nothing_at_inference_may_stand_between(between):
    assert ek.fold(chain((4,), layers.Dense(3), between(), BatchNormalization()))[1].left == []


def test_an_activation_of_ours_takes_its_place():
    model = chain((6, 6, 4), layers.Conv2D(5, 3), ek.BatchNormalization(activation="gelu", name="bn"))
    folded, _ = ek.fold(model)
    assert type(folded.get_layer("bn")) is layers.Activation
    np.testing.assert_allclose(plain(folded, data(model)), plain(model, data(model)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["nested", "functional", "sequential"])
def test_models_in_models(name):
    inner = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(5, 3), BatchNormalization(name="in")], name="inner")
    if name == "functional":
        x = layers.Conv2D(5, 3)(inner.inputs[0])
        inner = keras.Model(inner.inputs[0], BatchNormalization(name="in")(x), name="inner")
    inputs = keras.Input((6, 6, 4))
    x = layers.BatchNormalization(name="out")(inner(inputs))
    model = scrambled(keras.Model(inputs, [x, inner(layers.ReLU()(inputs))]))
    if name == "nested":
        outer = keras.Input((6, 6, 4))
        model = keras.Model(outer, model(outer))
    folded, report = ek.fold(model)
    inside = 16 * (9 * 4 * 5 + 5)  # the convolution and the normalizer, called twice
    assert report.multiply_adds.before == 2 * inside + 16 * 5
    path = "" if name != "nested" else f"{model.layers[-1].name}/"
    assert [item.normalizer for item in report.folded] == [f"{path}inner/in"]
    assert report.left[0].reason.startswith(f"the result of {path}inner") or "inner" in report.left[0].reason
    for before, after in zip(model(data(model)), folded(data(model)), strict=True):
        before, after = map(keras.ops.convert_to_numpy, (before, after))
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


# What stays, and why.


def used_twice(inputs):
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    return layers.Add()([x, BatchNormalization(name="bn")(x)])


def is_an_output(inputs):
    x = layers.Conv2D(4, 3)(inputs)
    return [x, BatchNormalization(name="bn")(x)]


def shared_normalizer(inputs):
    normalizer = BatchNormalization(name="bn")
    return normalizer(layers.Conv2D(4, 3)(normalizer(inputs)))


def shared_convolution(inputs):
    convolution = layers.Conv2D(4, 3, padding="same")
    return BatchNormalization(name="bn")(convolution(convolution(inputs)))


def in_training(inputs):
    return BatchNormalization(name="bn")(layers.Conv2D(4, 3)(inputs), training=True)


def in_a_model_in_training(inputs):
    inner = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(4, 3), BatchNormalization(name="bn")], name="inner")
    return inner(inputs, training=True)


def with_activation(inputs):
    return BatchNormalization(name="bn")(layers.Conv2D(4, 3, activation="relu")(inputs))


def after_a_pooling(inputs):
    return BatchNormalization(name="bn")(layers.MaxPooling2D()(layers.Conv2D(4, 3)(inputs)))


def other_axis(inputs):
    return BatchNormalization(axis=1, name="bn")(layers.Conv2D(4, 3)(inputs))


def several_axes(inputs):
    return ek.BatchNormalization(axis=[1, 3], name="bn")(layers.Conv2D(4, 3)(inputs))


def with_weights(inputs):
    return ek.BatchNormalization(name="bn")(layers.Conv2D(4, 3)(inputs), sample_weight=layers.Conv2D(4, 3)(inputs))


def with_operation(inputs):
    return BatchNormalization(name="bn")(layers.Conv2D(4, 3)(inputs) * 2.0)


@keras.saving.register_keras_serializable("fold-tests")
class Doubled(keras.layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


def subclassed(inputs):
    return Doubled(name="bn")(layers.Conv2D(4, 3)(inputs))


@keras.saving.register_keras_serializable("fold-tests")
class Block(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = [layers.Conv2D(4, 3), BatchNormalization(name="bn")]

    def build(self, shape):
        self.parts[0].build(shape)
        self.parts[1].build(self.parts[0].compute_output_shape(shape))

    def call(self, inputs):
        return self.parts[1](self.parts[0](inputs))


def hidden(inputs):
    return Block(name="block")(inputs)


def own_convolution(inputs):
    class Scaled(layers.Conv2D):
        def call(self, inputs):
            return keras.ops.tanh(super().call(inputs))

    return BatchNormalization(name="bn")(Scaled(4, 3)(inputs))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (used_twice, "the result of conv2d (Conv2D) before it is used elsewhere too"),
        (is_an_output, "the result of conv2d (Conv2D) before it is used elsewhere too"),
        (shared_normalizer, "it is shared: it is called 2 times"),
        (shared_convolution, "conv2d (Conv2D) before it is shared: it is called 2 times"),
        (in_training, "it is called with training=True, so it has no fixed statistics"),
        (in_a_model_in_training, "it stands in inner, which is called with training=True"),
        (with_activation, "conv2d (Conv2D) before it ends in relu"),
        (after_a_pooling, "before it stands max_pooling2d (MaxPooling2D); after it stands nothing"),
        (other_axis, "its axis 1 is not that of the channels of conv2d (Conv2D) before it"),
        (several_axes, "it has the channel axes [1, 3], and only one can be folded"),
        (with_weights, "it takes 2 tensors"),
        (with_operation, "before it stands multiply (Multiply)"),
        (subclassed, "it is a Doubled, which may compute something else than its parent class"),
        (hidden, "it stands in block (Block), whose graph is not known"),
        (own_convolution, "before it stands scaled (Scaled)"),
    ],
)
def test_what_stays_has_a_reason(build, reason):
    inputs = keras.Input((6, 6, 4))
    model = scrambled(keras.Model(inputs, build(inputs)))
    _, report = ek.fold(model)
    assert report.folded == []
    assert [left.normalizer.rpartition("/")[2] for left in report.left] == ["bn"]
    assert reason in report.left[0].reason


def test_a_quantized_layer_is_left_alone():
    model = chain((4,), layers.Dense(3, name="dense"), BatchNormalization())
    model.get_layer("dense").quantize("int8")
    assert "dense (Dense) before it is quantized to int8" in ek.fold(model)[1].left[0].reason


@pytest.mark.parametrize("variance", [float("nan"), float("inf"), -0.001])
def test_statistics_that_no_one_can_use_are_left_alone(variance):
    model = chain((4,), layers.Dense(2), BatchNormalization())
    next(normalizers(model)).moving_variance.assign([1.0, variance])
    if variance == float("inf"):
        assert ek.fold(model)[1].left == []  # a scale of 0
    else:
        with pytest.raises(InputError, match="not finite"):
            ek.fold(model)


# What the caller may count on.


def test_the_given_model_is_as_it_was():
    model = scrambled(resnet()[0])
    weights, config = model.get_weights(), model.get_config()
    ek.fold(model)
    assert model.get_config() == config
    assert all((a == b).all() for a, b in zip(model.get_weights(), weights, strict=True))


def test_the_folded_model_is_saved_and_loaded(tmp_path):
    model = scrambled(resnet()[0])
    folded, _ = ek.fold(model)
    folded.save(tmp_path / "folded.keras")
    loaded = keras.saving.load_model(tmp_path / "folded.keras")
    np.testing.assert_array_equal(plain(loaded, data(model)), plain(folded, data(model)))


@pytest.mark.parametrize("side", ["after", "before"])
def test_a_wrong_fold_is_noticed(monkeypatch, side):
    right = getattr(algebra, side)

    def wrong(linear, axis, scale, offset):
        return right(linear, axis, scale, offset + 1e-7 * (np.arange(len(offset)) == 0))

    monkeypatch.setattr(algebra, side, wrong)
    with pytest.raises(UnequalError, match=r"differs by .* in float64"):
        ek.fold(scrambled(densenet()[0]))


@pytest.mark.parametrize("first", ["normalizer", "dense"])
def test_a_mean_far_from_zero_costs_digits_and_is_no_mistake(first):
    parts = [BatchNormalization(), layers.Dense(4)]
    model = keras.Sequential([keras.Input((4,)), *(parts if first == "normalizer" else parts[::-1])])
    next(normalizers(model)).moving_mean.assign([1000.0, -1000.0, 3.0, 0.0])
    _, report = ek.fold(model, data(model) + np.float32(1000))
    assert report.left == []


def test_narrow_types_are_rounded_once():
    policy = keras.DTypePolicy("mixed_bfloat16")
    model = chain((4,), layers.Dense(8, dtype=policy), BatchNormalization(dtype=policy))
    folded, report = ek.fold(model)
    kernel, scale = (keras.ops.convert_to_numpy(value).astype("float64") for value in _kernel_and_scale(model))
    wanted = (kernel * scale).astype("float32")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(folded.layers[0].kernel), wanted)
    assert [item.dtype for item in report.differences] == ["bfloat16", "float64"]


def _kernel_and_scale(model):
    dense, bn = model.layers
    variance, gamma = (keras.ops.convert_to_numpy(v).astype("float64") for v in (bn.moving_variance, bn.gamma))
    return dense.kernel, gamma / np.sqrt(variance + bn.epsilon)


def test_adapted_layers_keep_what_they_learned():
    rescale = layers.Normalization()
    rescale.adapt(np.array([[1.0, 20.0], [3.0, 60.0]], "float32"))
    model = chain((2,), rescale, layers.Dense(3), BatchNormalization())
    assert ek.fold(model)[1].left == []


def test_a_float64_model_is_compared_in_float64():
    with wide():
        model = chain((4,), layers.Dense(8, dtype="float64"), ek.BatchNormalization(dtype="float64"))
        assert [item.dtype for item in ek.fold(model)[1].differences] == ["float64"]


def test_an_operation_in_float32_is_noticed():
    model = chain((6, 6, 4), layers.Conv2D(5, 3), BatchNormalization(), layers.GlobalAveragePooling2D())
    with wide():
        assert narrow_inside(copied(model, "float64"), data(model)) == (NAME != "tensorflow")


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (lambda: Subclassed(name="mine"), None, "mine is a Subclassed, whose graph Keras does not know"),
        (lambda: keras.Sequential([layers.Dense(3)], name="mine"), None, "mine has no weights yet"),
        (lambda: chain((4,), layers.Dense(3)), np.zeros((2, 5), "float32"), "does not take the given data"),
    ],
)
def test_what_cannot_be_folded_is_said(model, data, words):
    with pytest.raises(InputError, match=words):
        ek.fold(model(), data)


def test_the_report_is_words():
    model = chain((4,), layers.Dense(3, name="dense"), BatchNormalization(name="a"), layers.ReLU(name="relu"),
                  BatchNormalization(name="b"))  # fmt: skip
    words = str(ek.fold(model)[1])
    assert "folded 1 of 2 normalizers\n  a into dense before it\n" in words
    assert "left as they are\n  b: before it stands relu (ReLU); after it stands nothing\n" in words
    assert "parameters: 39 before, 27 after\nmultiply-adds of an example: 18 before, 15 after\n" in words
