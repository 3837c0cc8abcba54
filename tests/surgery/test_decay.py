# SPDX-License-Identifier: Apache-2.0
"""Weight decay by the real optimizers: kernels shrink, scales, offsets and biases do not."""

import numpy as np
import pytest

import evenkeel as ek
from evenkeel.errors import ArgumentError

from conftest import NAME

if NAME == "numpy":
    pytest.skip("optimizers need tensorflow, jax or torch", allow_module_level=True)
keras = pytest.importorskip("keras")

# Workaround: `Variable.numpy()` of Keras 3.15.1 under NumPy 2, off TensorFlow.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

KERNELS = {"kernel", "recurrent_kernel"}


def network():
    layers = keras.layers
    inner = [layers.Dense(4), ek.BatchNormalization(), layers.LayerNormalization(), layers.RMSNormalization()]
    return keras.Sequential([keras.Input((3, 2)), layers.GRU(3), keras.Sequential(inner), layers.BatchNormalization()])


def shrunk(model, optimizer):
    """Names of the variables that a step without gradients changes."""
    for variable in model.weights:
        variable.assign(np.ones(variable.shape))
    optimizer.build(model.trainable_variables)
    optimizer.apply([keras.ops.zeros(variable.shape) for variable in model.trainable_variables])
    return {item.name for item in model.weights if (keras.ops.convert_to_numpy(item.value) != 1).all()}


def test_keras():
    model, optimizer = network(), keras.optimizers.AdamW(0.1, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_list=ek.decay_exclusions(model))
    assert shrunk(model, optimizer) == KERNELS


def test_keras_would_shrink_all():
    model = network()
    assert shrunk(model, keras.optimizers.AdamW(0.1, weight_decay=0.1)) == KERNELS | {"bias", "gamma", "beta", "scale"}


def test_a_model_without_weights():
    with pytest.raises(ArgumentError, match=r"model later has no weights yet; build it"):
        ek.decay_exclusions(keras.Sequential([keras.layers.Dense(1)], name="later"))


def test_a_form_that_keras_does_not_come_in():
    with pytest.raises(ArgumentError, match="form='groups' is unknown; give one of 'variables', 'mask'"):
        ek.decay_exclusions(network(), form="groups")


@pytest.mark.skipif(NAME != "torch", reason="of torch")
def test_torch(backend):
    from evenkeel import torch as ours

    torch, nn = backend.torch, backend.torch.nn
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(1, 2, 3),
            "norms": nn.Sequential(nn.BatchNorm2d(2), nn.SyncBatchNorm(2), nn.GroupNorm(1, 2), nn.LayerNorm(2)),
            "ours": nn.Sequential(ours.BatchNorm(2), ours.BatchNorm1d(2)),
            "lstm": nn.LSTM(2, 2),
            "attention": nn.MultiheadAttention(2, 1),
        }
    )
    groups = ek.decay_exclusions(model)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1).step()
    assert {name for name, value in model.named_parameters() if (value != 1).all()} == {
        "conv.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    }


def test_a_form_of_torch(backend):
    if backend.name != "torch":
        pytest.skip("of torch")
    with pytest.raises(ArgumentError, match="form='mask' is for Keras models, and this is a Linear"):
        ek.decay_exclusions(backend.torch.nn.Linear(1, 1), form="mask")


@pytest.fixture
def optax():
    if NAME != "jax":
        pytest.skip("of jax")
    return pytest.importorskip("optax")


def decayed(optax, parameters, mask):
    """Which leaves a step without gradients changes, in a tree."""
    import jax

    optimizer, nothing = optax.adamw(0.1, weight_decay=0.1, mask=mask), jax.tree.map(jax.numpy.zeros_like, parameters)
    with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in int32
        updates, _ = optimizer.update(nothing, optimizer.init(parameters), parameters)
    return jax.tree.map(lambda update: bool((update != 0).all()), updates)


TREE = {"dense": {"kernel": np.ones(2), "bias": np.ones(2)}, "norms": [{"scale": np.ones(2), "bias": np.ones(2)}]}


@pytest.mark.parametrize("given", [ek.decay_exclusions, ek.decay_exclusions(TREE) if NAME == "jax" else None])
def test_optax(optax, given):
    expected = {"dense": {"kernel": True, "bias": False}, "norms": [{"scale": False, "bias": False}]}
    assert decayed(optax, TREE, given) == expected


def test_optax_with_a_keras_model(optax):
    model = network()
    names = [variable.name for variable in model.trainable_variables]
    values = [variable.value for variable in model.trainable_variables]
    for variable in model.weights:
        variable.assign(np.ones(variable.shape))
    found = decayed(optax, [np.ones(value.shape) for value in values], ek.decay_exclusions(model, form="mask"))
    assert {name for name, decays in zip(names, found, strict=True) if decays} == KERNELS
    assert {name for name, decays in zip(names, found, strict=True) if not decays} == {"bias", "gamma", "beta", "scale"}


def test_optax_with_flax(optax):
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Dict(linear=nnx.Linear(2, 3, rngs=nnx.Rngs(0)), norm=nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    mask = ek.decay_exclusions(nnx.state(model, nnx.Param))
    assert nnx.to_pure_dict(mask) == {
        "linear": {"kernel": True, "bias": False},
        "norm": {"scale": False, "bias": False},
    }
    nnx.Optimizer(model, optax.adamw(0.1, mask=mask), wrt=nnx.Param)
