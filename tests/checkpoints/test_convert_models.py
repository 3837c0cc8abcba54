# SPDX-License-Identifier: Apache-2.0
"""One network in slim, Keras and PyTorch takes weights from each of the others, and computes the same with them."""

import os

import numpy as np
import pytest

import evenkeel as ek

pytestmark = pytest.mark.skipif(os.environ.get("KERAS_BACKEND") != "tensorflow", reason="slim and Keras on TensorFlow")

BLOCKS = ((6, 8), (8, 10))
IMAGES = np.random.default_rng(1).normal(size=(3, 17, 17, 3)).astype("float32")  # odd, so that all pad alike
STEPS, RATE = 3, 0.05
RULES = [
    r"re:^resnet/block(\d)/shortcut/BatchNorm/=layer\1.downsample.1/",
    r"re:^resnet/block(\d)/shortcut/=layer\1.downsample.0/",
    r"re:^resnet/block(\d)/conv(\d)/BatchNorm/=layer\1.bn\2/",
    r"re:^resnet/block(\d)/=layer\1.",
    "resnet/conv1/BatchNorm=bn1",
    "resnet/conv1=conv1",
    "resnet/logits=fc",
]
BACK = [
    r"re:^layer(\d)[._]downsample[._]1[./]=resnet/block\1/shortcut/BatchNorm/",
    r"re:^layer(\d)[._]downsample[._]0[./]=resnet/block\1/shortcut/",
    r"re:^layer(\d)[._]bn(\d)[./]=resnet/block\1/conv\2/BatchNorm/",
    r"re:^layer(\d)[._](conv\d)[./]=resnet/block\1/\2/",
    "bn1=resnet/conv1/BatchNorm",
    "conv1=resnet/conv1",
    "fc=resnet/logits",
]
RENAME = {("slim", "torch"): RULES, ("slim", "keras"): RULES, ("torch", "slim"): BACK, ("keras", "slim"): BACK}


def perturbed(name, shape, seed):
    """Values for a variable: positive where it is a variance."""
    values = np.random.default_rng([seed, *name.encode()]).normal(size=shape).astype("float32")
    return np.abs(values) + 0.5 if "var" in name else 0.4 * values


# PyTorch.


def torch_net(seed=None):
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, inputs, 3, 2, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(inputs, eps=1e-3)
            self.conv2 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs, eps=1e-3)
            )

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + self.downsample(x))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 6, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(6, eps=1e-3)
            self.layer1, self.layer2 = (Block(*block) for block in BLOCKS)
            self.fc = nn.Linear(10, 5)

        def forward(self, x):
            x = self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x)))))
            return self.fc(x.mean((2, 3)))

    model = ResNet().eval()
    if seed is not None:
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if tensor.shape:
                    tensor.copy_(torch.tensor(perturbed(name, tuple(tensor.shape), seed)))
    return model


def torch_file(path, seed=0):
    import torch

    torch.save(torch_net(seed).state_dict(), path)
    return path


def torch_outputs(path):
    import torch

    model = torch_net()
    model.load_state_dict(torch.load(path, weights_only=True))
    with torch.no_grad():
        return model(torch.tensor(IMAGES.transpose(0, 3, 1, 2))).numpy()


# Keras.


def keras_net():
    import keras

    def convolution(x, filters, size, strides, name, normalizer):
        x = keras.layers.Conv2D(filters, size, strides, "same", use_bias=False, name=name)(x)
        return keras.layers.BatchNormalization(name=normalizer)(x)

    x = inputs = keras.Input((17, 17, 3))
    x = keras.layers.ReLU()(convolution(x, 6, 3, 1, "conv1", "bn1"))
    for number, (before, after) in enumerate(BLOCKS, 1):
        block = f"layer{number}_"
        short = convolution(x, after, 1, 2, f"{block}downsample_0", f"{block}downsample_1")
        x = keras.layers.ReLU()(convolution(x, before, 3, 2, f"{block}conv1", f"{block}bn1"))
        x = convolution(x, after, 3, 1, f"{block}conv2", f"{block}bn2")
        x = keras.layers.ReLU()(keras.layers.Add()([x, short]))
    x = keras.layers.Dense(5, name="fc")(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x)


def keras_file(path, seed=0):
    """Of a network that was trained, from random values on."""
    import keras

    model = keras_net()
    for variable in model.weights:
        variable.assign(perturbed(variable.path, tuple(variable.shape), seed))
    before = [np.asarray(variable) for variable in model.weights]
    model.compile(keras.optimizers.SGD(RATE, clipnorm=1.0), "mse")
    model.fit(IMAGES, np.ones((3, 5)), epochs=STEPS, verbose=0)
    assert all((np.asarray(after) != old).any() for after, old in zip(model.weights, before, strict=True))
    model.save(path)
    return path


def keras_outputs(path):
    import keras

    return np.asarray(keras.saving.load_model(path)(IMAGES, training=False))


# slim.


def slim_net(*, training=False):
    import tensorflow as tf

    from evenkeel.tf1.contrib import slim

    v1 = tf.compat.v1
    settings = {"scale": True, "is_training": training}
    with (
        slim.arg_scope([slim.conv2d], normalizer_fn=slim.batch_norm, normalizer_params=settings),
        v1.variable_scope("resnet"),
    ):
        x = slim.conv2d(tf.constant(IMAGES), 6, [3, 3], scope="conv1")
        for number, (before, after) in enumerate(BLOCKS, 1):
            with v1.variable_scope(f"block{number}"):
                short = slim.conv2d(x, after, [1, 1], stride=2, activation_fn=None, scope="shortcut")
                x = slim.conv2d(x, before, [3, 3], stride=2, scope="conv1")
                x = slim.conv2d(x, after, [3, 3], activation_fn=None, scope="conv2")
                x = tf.nn.relu(x + short)
        x = tf.reduce_mean(x, [1, 2])
        return slim.fully_connected(x, 5, activation_fn=None, normalizer_fn=None, scope="logits")


def in_session(work, *, training=False):
    """What `work` makes of a session with the network, its outputs and a saver."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default():
        outputs, saver = slim_net(training=training), v1.train.Saver()
        with v1.Session() as session:
            return work(session, outputs, saver)


def slim_file(path, seed=0):
    """Of a network that was trained, from random values on."""
    import tensorflow as tf

    from evenkeel.tf1.contrib import slim

    def save(session, outputs, saver):
        variables = tf.compat.v1.global_variables()
        for variable in variables:
            variable.load(perturbed(variable.op.name, variable.shape.as_list(), seed), session)
        before = session.run(variables)
        loss = tf.reduce_mean((outputs - 1) ** 2)
        optimizer = tf.compat.v1.train.GradientDescentOptimizer(RATE)
        step = slim.learning.create_train_op(loss, optimizer, global_step=None, clip_gradient_norm=1.0)
        for _ in range(STEPS):
            session.run(step)
        assert all((after != old).any() for after, old in zip(session.run(variables), before, strict=True))
        return saver.save(session, str(path), write_meta_graph=False)

    in_session(save, training=True)
    return path


def slim_outputs(path):
    def restore(session, outputs, saver):
        saver.restore(session, str(path))
        return session.run(outputs)

    return in_session(restore)


NETS = {
    "slim": (slim_file, slim_outputs, ""),
    "keras": (keras_file, keras_outputs, ".keras"),
    "torch": (torch_file, torch_outputs, ".pt"),
}


@pytest.mark.parametrize("target", NETS)
@pytest.mark.parametrize("source", NETS)
def test_outputs_agree(source, target, tmp_path):
    (make, outputs, ending), (make_like, outputs_after, ending_after) = NETS[source], NETS[target]
    before = make(tmp_path / f"source{ending}")
    like = make_like(tmp_path / f"like{ending_after}", seed=1)
    after = tmp_path / f"target{ending_after}"
    report = ek.convert(before, after, like=like, rename=RENAME.get((source, target), ()))
    assert (report.normalizers, report.difference, report.left) == (7, 0.0, ())
    expected = outputs(before)
    assert np.abs(outputs_after(like) - expected).max() > 0.1  # they can differ
    np.testing.assert_allclose(outputs_after(after), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("source", "middle"), [("slim", "torch"), ("slim", "keras"), ("keras", "torch")])
def test_there_and_back_is_exact(source, middle, tmp_path):
    (make, _, ending), (make_middle, _, ending_middle) = NETS[source], NETS[middle]
    before, between, after = tmp_path / f"a{ending}", tmp_path / f"b{ending_middle}", tmp_path / f"c{ending}"
    make(before)
    like = make_middle(tmp_path / f"like{ending_middle}", seed=1)
    ek.convert(before, between, like=like, rename=RENAME.get((source, middle), ()))
    like = make(tmp_path / f"like_back{ending}", seed=2)
    ek.convert(between, after, like=like, rename=RENAME.get((middle, source), ()))
    first, second = (ek.read_checkpoint(path).variables for path in (before, after))
    assert {name: value.read().tobytes() for name, value in first.items()} == {
        name: value.read().tobytes() for name, value in second.items()
    }


def test_a_keras_model_without_rules_takes_its_own_weights_from_another_count(tmp_path):
    """Names that a library numbers go on where the last model stopped."""
    import keras

    def save(path):
        layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(4)]
        model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.BatchNormalization()])
        model.save(path)
        return model(IMAGES[0, :, :4, 0], training=False)

    first = save(tmp_path / "first.keras")
    save(tmp_path / "second.keras")
    report = ek.convert(tmp_path / "first.keras", tmp_path / "third.keras", like=tmp_path / "second.keras")
    assert any("matched by number" in note for note in report.notes)
    third = keras.saving.load_model(tmp_path / "third.keras")(IMAGES[0, :, :4, 0], training=False)
    np.testing.assert_array_equal(third, first)


def test_a_transposed_convolution_of_flax(tmp_path):
    """It is the gradient of a convolution in Keras, and a convolution in Flax."""
    import flax.linen as nn
    import keras

    keras_layer = keras.layers.Conv2DTranspose(4, 3, 2, "same", name="conv2d_transpose")
    x = IMAGES[:, :6, :6]
    expected = np.asarray(keras.Sequential([keras.Input((6, 6, 3)), keras_layer])(x))
    values = {
        "conv2d_transpose/kernel": np.asarray(keras_layer.kernel),
        "conv2d_transpose/bias": np.asarray(keras_layer.bias),
    }
    variables = {name: ek.checkpoints.Variable.of(value) for name, value in values.items()}
    source = ek.checkpoints.Checkpoint("example", "memory", "keras", variables)
    ek.write_checkpoint(tmp_path / "a.npz", source)
    ek.convert(tmp_path / "a.npz", tmp_path / "b.npz", to="flax")
    read = ek.read_checkpoint(tmp_path / "b.npz").variables
    parameters = {name: read[f"params/conv2d_transpose/{name}"].read() for name in ("kernel", "bias")}
    y = nn.ConvTranspose(4, (3, 3), (2, 2), "SAME").apply({"params": parameters}, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
