# SPDX-License-Identifier: Apache-2.0
"""A model with other normalizers is the same model: outputs, weights, names, flags, optimizer."""

import numpy as np
import pytest

import evenkeel as ek
from evenkeel.errors import ArgumentError, InputError, UnknownTensorError

from conftest import NAME

if NAME == "numpy":
    pytest.skip("Keras layers need tensorflow, jax or torch", allow_module_level=True)
keras = pytest.importorskip("keras")

# Workaround: `Variable.numpy()` of Keras 3.15.1 under NumPy 2, off TensorFlow.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

layers = keras.layers
Theirs, Ours = layers.BatchNormalization, ek.BatchNormalization
X = np.random.default_rng(0).normal(1, 2, (6, 4, 3)).astype("float32")


@pytest.fixture(autouse=True)
def _fresh_names_and_seed():
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


@keras.saving.register_keras_serializable(package="upgrade tests")
class Block(layers.Layer):
    """Layers in attributes, in lists that were filled in turns, and in a dictionary."""

    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.first = layers.Dense(3)
        self.dense, self.norms = [], []
        for _ in range(2):
            self.dense.append(layers.Dense(3))
            self.norms.append(Theirs())
        self.named = {"last": layers.Dense(3), "norm": Theirs(momentum=0.5)}

    def build(self, input_shape):
        for layer in (self.first, *self.dense, *self.norms, *self.named.values()):
            layer.build(input_shape)

    def call(self, x, training=None):
        x = self.first(x)
        for dense, norm in zip(self.dense, self.norms, strict=True):
            x = norm(dense(x), training=training)
        return self.named["norm"](self.named["last"](x), training=training)


@keras.saving.register_keras_serializable(package="upgrade tests")
class Subclassed(keras.Model):
    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.block = Block()
        self.norm = Theirs(momentum=0.5)
        self.head = keras.Sequential([layers.Dense(2), Theirs(), layers.Dropout(0.5)])

    def call(self, x, training=None):
        return self.head(self.norm(self.block(x), training=training), training=training)


def sequential():
    return keras.Sequential(
        [keras.Input((4, 3)), layers.Dense(5), Theirs(momentum=0.5, name="bn"), layers.Dropout(0.5)]
    )


def functional():
    """A normalizer and a model that are used twice, and arithmetic."""
    x = keras.Input((4, 3))
    shared, part = Theirs(name="shared"), keras.Sequential([keras.Input((4, 3)), layers.Dense(3), Theirs()])
    y = shared(part(x)) + shared(x) * 2.0
    return keras.Model(x, [part(y), Theirs(renorm=True, axis=1, scale=False)(y)])


def wrapped():
    return keras.Sequential([keras.Input((4, 3)), layers.TimeDistributed(Theirs()), Block()])


def subclassed():
    model = Subclassed()
    model(X)
    return model


MODELS = [sequential, functional, wrapped, subclassed]


def of(make):
    """A model with no weight that another would have by chance."""
    model = make()
    for place, weight in enumerate(model.weights):
        start = np.linspace(0.5, 2, int(np.prod(weight.shape))).reshape(weight.shape)
        weight.assign(start + place / 8)
    return model


def outputs(model):
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(X, training=False))]


def same(one, other):
    for a, b in zip(outputs(one), outputs(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def kinds(model):
    from evenkeel.surgery.walk import keras_normalizers

    return {type(layer) for layer in keras_normalizers(model)}


@pytest.mark.parametrize("make", MODELS)
def test_there_and_back(make):
    model = of(make)
    ours = ek.upgrade(model)
    back = ek.upgrade(ours, to="keras")
    assert (kinds(model), kinds(ours), kinds(back)) == ({Theirs}, {Ours}, {Theirs})
    same(model, ours)
    same(model, back)
    assert [layer.name for layer in ours.layers] == [layer.name for layer in model.layers]
    assert [weight.name for weight in ours.weights] == [weight.name for weight in model.weights]


@pytest.mark.parametrize("make", [wrapped, subclassed])
def test_a_file_of_the_copy(make, tmp_path):
    ours = ek.upgrade(of(make))
    ours.save_weights(tmp_path / "model.weights.h5")
    again = ek.upgrade(make())
    again.load_weights(tmp_path / "model.weights.h5")
    same(again, ours)


def test_what_is_upgraded_can_be_frozen():
    model = ek.upgrade(of(functional))
    ek.freeze(model)
    before = model.get_weights()
    model(X, training=True)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_flags():
    model = of(functional)
    model.layers[-1].trainable = False
    ours = ek.upgrade(model)
    assert [layer.trainable for layer in ours.layers] == [layer.trainable for layer in model.layers]
    assert [weight.trainable for weight in ours.weights] == [weight.trainable for weight in model.weights]


def test_the_optimizer_goes_on():
    model = keras.Sequential([keras.Input((4, 3)), layers.Dense(5), Theirs(momentum=0.5)])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", metrics=["mae"])
    y = np.ones((6, 4, 5), "float32")
    model.fit(X, y, batch_size=3, shuffle=False, verbose=0)
    ours = ek.upgrade(model)
    assert int(ours.optimizer.iterations) == 2
    for item in (model, ours):
        item.fit(X, y, batch_size=3, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert set(ours.get_metrics_result()) == set(model.get_metrics_result())


def test_a_subclassed_model_without_weights():
    assert kinds(ek.upgrade(Subclassed())) == {Ours}


def test_other_classes_stay():
    class Own(Theirs):
        pass

    model = keras.Sequential([keras.Input((3,)), Own(), Ours(average="debiased"), Theirs()])
    assert [type(layer) for layer in ek.upgrade(model).layers] == [Own, Ours, Ours]


LACKING = {
    "axis=[1, 2]": {"axis": [1, 2]},
    "virtual_batch_size=2": {"virtual_batch_size": 2},
    "an adjustment": {"adjustment": lambda shape: (1.0, 0.0)},
    "average='debiased'": {"average": "debiased"},
    "bessel_correction=True": {"bessel_correction": True},
    "an activation": {"activation": "relu"},
    "frozen='all'": {"frozen": "all"},
    "float32 statistics beside float16": {"dtype": "float16"},
    "renorm_clipping that changes": {
        "renorm": True,
        "renorm_clipping": {"rmax": keras.optimizers.schedules.PolynomialDecay(1.0, 5, 3.0)},
    },
}


@pytest.mark.parametrize("text", LACKING)
def test_what_keras_lacks(text):
    model = keras.Sequential([keras.Input((4, 3)), Ours(name="bn", **LACKING[text])])
    with pytest.raises(ArgumentError, match=r"bn has what keras\.layers\.BatchNormalization lacks") as raised:
        ek.upgrade(model, to="keras")
    assert f"lacks: {text}" in str(raised.value)


def test_an_axis_in_a_list_of_one():
    model = keras.Sequential([keras.Input((4, 3)), Ours(axis=[1])])
    assert ek.upgrade(model, to="keras").layers[0].axis == 1


def test_a_class_without_a_configuration():
    class Bare(layers.Layer):
        def __init__(self, function):
            super().__init__(name="bare")
            self.function, self.norm = function, Theirs()

        def call(self, x):
            return self.norm(x)

    model = keras.Sequential([keras.Input((4, 3)), Bare(lambda x: x)])
    with pytest.raises(InputError, match=r"bare, a Bare, cannot be made from its configuration(.|\n)*get_config"):
        ek.upgrade(model)


def test_a_torch_module_is_another_matter():
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.SyncBatchNorm(4))
    network(torch.randn(5, 3))
    ours = ek.upgrade(network, synchronized=True)
    assert [type(part).__module__ for part in ours][1:] == ["evenkeel.layers.torch"] * 2
    assert [part.synchronized for part in ours[1:]] == [True, True]
    x = torch.randn(5, 3)
    torch.testing.assert_close(ours.eval()(x), network.eval()(x))
    back = ek.upgrade(ours, to="torch", synchronized=True)
    assert [type(part) for part in back][1:] == [torch.nn.SyncBatchNorm] * 2
    assert type(ek.upgrade(ek.upgrade(network), to="torch")[1]) is torch.nn.BatchNorm1d
    assert type(network[1]) is torch.nn.BatchNorm1d and ours[1].weight is not network[1].weight
    for key, value in network.state_dict().items():
        torch.testing.assert_close(back.state_dict()[key], value)


def test_a_torch_module_is_not_made_keras():
    torch = pytest.importorskip("torch")
    with pytest.raises(ArgumentError, match=r"to='keras' is unknown; give one of 'evenkeel', 'torch'"):
        ek.upgrade(torch.nn.BatchNorm1d(3), to="keras")


@pytest.mark.skipif(NAME != "torch", reason="elsewhere Keras's layers are no modules")
def test_keras_inside_a_torch_module():
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match="Sequential is a torch module with Keras's normalizers in it"):
        ek.upgrade(torch.nn.Sequential(layers.BatchNormalization()))


def test_no_model():
    with pytest.raises(UnknownTensorError, match=r"builtins\.str; give a Keras 3 model"):
        ek.upgrade("model.keras")


def test_another_library():
    with pytest.raises(ArgumentError, match="to='torch' is unknown; give one of 'evenkeel', 'keras'"):
        ek.upgrade(keras.Sequential(), to="torch")


def synchronized(model):
    return [layer.synchronized for layer in model.layers if isinstance(layer, Theirs)]


def test_all_are_synchronized_and_back():
    model = keras.Sequential(
        [keras.Input((3,)), Theirs(momentum=0.5), layers.Dense(2), Ours(average="debiased"), Ours()]
    )
    spread = ek.upgrade(model, synchronized=True)
    assert synchronized(spread) == [True] * 3 and spread.layers[0].momentum == 0.5
    assert spread.layers[2].average == "debiased" and all(type(spread.layers[place]) is Ours for place in (0, 2, 3))
    np.testing.assert_array_equal(spread.predict(X[:, 0], verbose=0), model.predict(X[:, 0], verbose=0))
    assert synchronized(ek.upgrade(spread)) == [True] * 3
    assert synchronized(ek.upgrade(spread, synchronized=False)) == [False] * 3
    plain = keras.Sequential([keras.Input((3,)), Theirs()])
    back = ek.upgrade(ek.upgrade(plain, synchronized=True), to="keras", synchronized=False)
    assert synchronized(back) == [False] and type(back.layers[0]) is Theirs


@pytest.mark.skipif(NAME == "tensorflow", reason="Keras's layer has it there")
def test_synchronization_that_keras_lacks():
    model = keras.Sequential([keras.Input((3,)), Ours(synchronized=True)])
    with pytest.raises(ArgumentError, match="lacks: synchronized=True"):
        ek.upgrade(model, to="keras")


def test_back_beside_layers_of_kerass_own():
    model = keras.Sequential([keras.Input((3,)), Theirs(), Ours(synchronized=True)])
    back = ek.upgrade(model, to="keras", synchronized=False)
    assert [type(layer) for layer in back.layers] == [Theirs, Theirs] and synchronized(back) == [False, False]


@pytest.mark.skipif(NAME != "jax", reason="axes of a mesh are JAX's")
def test_a_layer_that_names_its_axis():
    model = keras.Sequential([keras.Input((3,)), Ours(synchronized=True, axis_name="data")])
    assert ek.upgrade(model, synchronized=False).layers[0].axis_name is None
    assert ek.upgrade(ek.upgrade(model)).layers[0].axis_name == "data"


def test_a_configuration_with_the_axis_of_a_mesh_loads_everywhere():
    config = Ours(synchronized=True).get_config() | {"axis_name": "data"}
    assert Ours.from_config(config).axis_name == ("data" if NAME == "jax" else None)
