# SPDX-License-Identifier: Apache-2.0
"""What is frozen stays, bit for bit, whatever trains it; what is unfrozen trains as if nothing had been."""

import contextlib
import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evenkeel as ek
from evenkeel.errors import ArgumentError, UnknownTensorError

from conftest import NAME

if NAME == "numpy":
    pytest.skip("training needs tensorflow, jax or torch", allow_module_level=True)
keras = pytest.importorskip("keras")

# Workaround: `Variable.numpy()` of Keras 3.15.1 under NumPy 2, off TensorFlow.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SOURCE = Path(ek.__file__).parents[1]
STEPS, BATCH = 50, 4
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(3, 2, (STEPS * BATCH, 5)).astype("float32")
Y = X.sum(1, keepdims=True) + GENERATOR.normal(0, 1, (STEPS * BATCH, 1)).astype("float32")


@pytest.fixture(autouse=True)
def _fresh_names_and_seed():
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


def normalizer(kind=ek.BatchNormalization, **arguments):
    return kind(momentum=0.9, name="bn", **arguments)


def network(**arguments):
    """Its normalizer is in a model in a model."""
    inner = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4), normalizer(**arguments)], name="inner")
    x = keras.Input((5,))
    return keras.Model(x, keras.layers.Dense(1)(inner(x)))


def layer_of(model):
    return model.layers[1].layers[-1]


def compiled(model, **options):
    options = {"optimizer": keras.optimizers.AdamW(1e-3, weight_decay=0.1), **options}
    model.compile(loss="mse", **options)
    return model


def fitted(model, x=X, y=Y):
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)


def bits(*variables):
    return [keras.ops.convert_to_numpy(variable.value).copy().tobytes() for variable in variables]


def statistics(layer):
    return bits(*(weight for weight in layer.weights if weight.name not in ("gamma", "beta")))


def affine(layer):
    return bits(layer.gamma, layer.beta)


# A Keras model.


def trained_first(model):
    fitted(compiled(model), X[:8], Y[:8])
    ek.freeze(model)


def compiled_after(model):
    ek.freeze(model)
    model.trainable = False
    model.trainable = True
    compiled(model)


def frozen_in_a_parent(model):
    """The part is frozen, not the model that was compiled, traced and is trained."""
    fitted(compiled(model), X[:8], Y[:8])
    ek.freeze(model.layers[1])


FREEZING = [trained_first, compiled_after, frozen_in_a_parent]
RENORM = {"renorm": True, "average": "debiased"}


@pytest.mark.parametrize(("frozen", "arguments"), [*((way, {}) for way in FREEZING), (trained_first, RENORM)])
def test_fifty_steps_move_no_statistic(frozen, arguments):
    model = network(**arguments)
    frozen(model)
    layer = layer_of(model)
    before, gamma, kernel = statistics(layer), affine(layer), bits(model.layers[-1].kernel)
    fitted(model)
    assert statistics(layer) == before
    assert affine(layer) != gamma and bits(model.layers[-1].kernel) != kernel


def test_they_would_without_it(monkeypatch):
    monkeypatch.setattr(ek, "freeze", lambda model: None, raising=False)
    model = network()
    trained_first(model)
    before = statistics(layer_of(model))
    fitted(model, X[:8], Y[:8])
    assert statistics(layer_of(model)) != before


@pytest.mark.parametrize("frozen", FREEZING)
def test_gamma_and_beta_stay_too(frozen, monkeypatch):
    freeze = ek.freeze
    monkeypatch.setattr(ek, "freeze", lambda model: freeze(model, affine=True), raising=False)
    model = network()
    frozen(model)
    layer = layer_of(model)
    before, kernel = statistics(layer) + affine(layer), bits(model.layers[-1].kernel)
    fitted(model)
    assert statistics(layer) + affine(layer) == before
    assert bits(model.layers[-1].kernel) != kernel


def test_training_normalizes_with_the_moving_statistics():
    model = network()
    ek.freeze(model)
    np.testing.assert_array_equal(*(np.asarray(keras.ops.convert_to_numpy(model(X, training=t))) for t in (0, 1)))


def test_not_frozen_it_does_not():
    model = network()
    train, infer = (keras.ops.convert_to_numpy(model(X, training=t)) for t in (True, False))
    assert abs(train - infer).max() > 0.1


@pytest.mark.parametrize("all_of_it", [False, True])
def test_unfrozen_it_trains_as_a_model_that_never_was(all_of_it):
    """Frozen, trained, unfrozen; then the state in the midst goes to a model that never was frozen."""
    model, other = (compiled(network(), optimizer=keras.optimizers.SGD(1e-3)) for _ in range(2))
    fitted(model, X[:8], Y[:8])
    ek.freeze(model, affine=all_of_it)
    fitted(model, X[:8], Y[:8])
    ek.unfreeze(model)
    other.set_weights(model.get_weights())
    before = statistics(layer_of(model)), affine(layer_of(model))
    for item in (model, other):
        fitted(item, X[8:16], Y[8:16])
    assert all(map(lambda old, new: old != new, before, (statistics(layer_of(model)), affine(layer_of(model)))))
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert layer_of(model).get_config() == layer_of(other).get_config()


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")  # which knows gamma and beta
@pytest.mark.parametrize("all_of_it", [False, True])
def test_it_survives_a_file(all_of_it, tmp_path):
    model = compiled(network())
    fitted(model, X[:8], Y[:8])
    ek.freeze(model, affine=all_of_it)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    layer = layer_of(loaded)
    assert layer.frozen == ("all" if all_of_it else True)
    before = statistics(layer) + affine(layer) * all_of_it
    assert before == statistics(layer_of(model)) + affine(layer_of(model)) * all_of_it
    fitted(loaded, X[:8], Y[:8])
    assert statistics(layer) + affine(layer) * all_of_it == before
    ek.unfreeze(loaded)
    assert len(layer.trainable_weights) == 2
    fitted(compiled(loaded), X[:8], Y[:8])
    assert statistics(layer) != before[:2]


def test_a_callback_may_freeze_in_the_midst_of_fit():
    class Freezing(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                ek.freeze(self.model, affine=True)
                self.before = statistics(layer_of(self.model)) + affine(layer_of(self.model))

    model, callback = compiled(network()), Freezing()
    start = bits(layer_of(model).moving_mean)
    model.fit(X[:16], Y[:16], batch_size=BATCH, verbose=0, callbacks=[callback])
    assert statistics(layer_of(model)) + affine(layer_of(model)) == callback.before
    assert bits(layer_of(model).moving_mean) != start


def test_gamma_held_by_hand_is_so_afterwards():
    layer = normalizer()
    layer.build((None, 3))
    layer.gamma.trainable = False
    ek.freeze(layer, affine=True)
    assert layer.trainable_weights == []
    ek.unfreeze(layer)
    assert layer.trainable_weights == [layer.beta]


def test_a_layer_that_is_not_trainable_is_so_afterwards():
    layer = normalizer()
    layer.build((None, 3))
    ek.freeze(layer, affine=True)
    layer.trainable = False
    ek.unfreeze(layer)
    assert not layer.trainable and not layer.gamma.trainable


def test_keras_s_layers_need_an_upgrade():
    model = keras.Sequential([keras.Input((3,)), normalizer(), keras.layers.BatchNormalization(name="theirs")])
    with pytest.raises(ArgumentError, match=r"theirs cannot be frozen(.|\n)*evenkeel.upgrade"):
        ek.freeze(model)
    assert not model.layers[0].frozen


def test_nothing_to_freeze():
    with pytest.raises(ArgumentError, match="no batch normalization"):
        ek.freeze(keras.Sequential([keras.layers.Dense(1)]))


@pytest.mark.parametrize("function", ["freeze", "unfreeze"])
def test_no_model(function):
    with pytest.raises(UnknownTensorError, match=r"builtins\.str.*give a Keras 3 model"):
        getattr(ek, function)("model.keras")


def test_averaged_weights_are_refused():
    model = compiled(network(), optimizer=keras.optimizers.SGD(1e-3, use_ema=True))
    fitted(model, X[:8], Y[:8])
    with pytest.raises(ArgumentError, match="use_ema=True"):
        ek.freeze(model, affine=True)
    assert not layer_of(model).frozen


@pytest.mark.parametrize("value", ["yes", 2, None])
def test_frozen_is_one_of_three(value):
    with pytest.raises(ArgumentError, match=rf"frozen={value!r} is unknown; give False, True or 'all'"):
        normalizer(frozen=value)


@pytest.mark.skipif(NAME != "jax", reason="a step compiled by jax.jit")
def test_a_step_that_was_compiled_by_hand_obeys():
    import jax

    layer, x = normalizer(), jax.numpy.asarray(X)
    layer.build((None, 5))
    state = [[v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables)]
    step = jax.jit(lambda *state: layer.stateless_call(*state, x, training=True)[1])
    moved = step(*state)
    ek.freeze(layer)
    kept = step(*state)
    assert [float(abs(new - old).max()) > 0 for new, old in zip(moved, state[1], strict=True)] == [True, True]
    assert [float(abs(new - old).max()) for new, old in zip(kept, state[1], strict=True)] == [0, 0]


# Passes that do not count.


def passes(model, how):
    if how == "fit":
        fitted(model, X[:8], Y[:8])
    else:
        model(X, training=True)
    if how == "raises":
        raise KeyError("stop")


@pytest.mark.parametrize("how", ["eager", "fit", "raises"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"renorm": True, "average": "cumulative"}, {"kind": keras.layers.BatchNormalization}],
    ids=["plain", "renorm", "keras's"],
)
def test_passes_do_not_count(arguments, how):
    model = compiled(network(**arguments))
    fitted(model, X[:8], Y[:8])
    before = statistics(layer_of(model))
    with contextlib.suppress(KeyError), ek.no_update(model):
        passes(model, how)
        if how != "fit":
            assert statistics(layer_of(model)) != before
    assert statistics(layer_of(model)) == before
    fitted(model, X[:8], Y[:8])
    assert statistics(layer_of(model)) != before


def test_a_compiled_step_counts_once(backend):
    """The pass within `no_update` is part of the function that is compiled."""
    once, twice = normalizer(), normalizer()
    for layer in (once, twice):
        layer.build((None, 5))

    def step(layer, extra):
        if extra:
            with ek.no_update(layer):
                layer(5 * X, training=True)
        return layer(X, training=True)

    for layer, extra in ((once, False), (twice, True)):
        if NAME == "tensorflow":
            backend.compile(lambda layer=layer, extra=extra: step(layer, extra), "graph")()
        elif NAME == "torch":
            step(layer, extra)
        else:
            state = [(v, v.value) for v in layer.variables]

            def run(values, layer=layer, extra=extra, state=state):
                with keras.StatelessScope([(v, x) for (v, _), x in zip(state, values, strict=True)]) as scope:
                    step(layer, extra)
                return [scope.get_current_value(v) for v, _ in state]

            new = backend.compile(run, "jit")([x for _, x in state])
            for (variable, _), value in zip(state, new, strict=True):
                variable.assign(value)
    np.testing.assert_allclose(*(keras.ops.convert_to_numpy(layer.moving_mean.value) for layer in (once, twice)))
    assert abs(keras.ops.convert_to_numpy(twice.moving_mean.value)).max() > 0.1


def test_a_layer_without_statistics_yet():
    with pytest.raises(ArgumentError, match="bn is not built"), ek.no_update(normalizer()):
        pass


# A torch module.


@pytest.fixture
def torch(backend):
    if backend.name != "torch":
        pytest.skip("of torch")
    return backend.torch


def module_of(torch):
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(nn.Linear(5, 4), nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), nn.Linear(4, 1))


def stepped(torch, module, steps=STEPS, optimizer=None, **options):
    optimizer = optimizer or torch.optim.SGD(module.parameters(), 1e-3, momentum=0.9, weight_decay=0.1)
    call = torch.compile(module, **options) if options else module
    for start in range(0, steps * BATCH, BATCH):
        module.train()
        module.requires_grad_(True)
        optimizer.zero_grad()
        rows = slice(start, start + BATCH)
        ((call(torch.tensor(X[rows])) - torch.tensor(Y[rows])) ** 2).mean().backward()
        optimizer.step()
    return optimizer


def kept(module):
    return {name: value.detach().numpy().tobytes() for name, value in module[1][0].state_dict().items()}


@pytest.mark.parametrize("all_of_it", [False, True])
@pytest.mark.parametrize(
    "copied", [lambda module: module, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]
)
def test_fifty_steps_of_torch_move_nothing(torch, copied, all_of_it):
    module = module_of(torch)
    stepped(torch, module, 2)
    names = set(module.state_dict())
    ek.freeze(module, affine=all_of_it)
    module = copied(module)
    before = kept(module)
    stepped(torch, module)
    after = kept(module)
    moved = {name for name in before if before[name] != after[name]}
    assert moved == (set() if all_of_it else {"weight", "bias"})
    assert set(module.state_dict()) == names
    assert not module[1][0].training and module[1].training


def test_a_compiled_module_obeys(torch):
    module = module_of(torch)
    call = torch.compile(module)
    call(torch.tensor(X))
    ek.freeze(module)
    before = kept(module)
    module.train()
    call(torch.tensor(X))
    assert kept(module) == before
    ek.unfreeze(module)
    call(torch.tensor(X))
    assert kept(module) != before


@pytest.mark.parametrize("all_of_it", [False, True])
def test_the_optimizer_of_before_goes_on(torch, all_of_it):
    one, other = module_of(torch), module_of(torch)
    optimizers = [stepped(torch, module, 2) for module in (one, other)]
    ek.freeze(other, affine=all_of_it)
    if all_of_it:
        frozen = kept(other)
        stepped(torch, other, 0, optimizers[1])
        optimizers[1].step()  # a gradient from before does not come through
        assert kept(other) == frozen
    ek.unfreeze(other)
    other.load_state_dict(one.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for module, optimizer in zip((one, other), optimizers, strict=True):
        stepped(torch, module, 5, optimizer)
    assert kept(one) == kept(other)
    assert list(one.state_dict()) == list(other.state_dict())


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_of_before_comes_back(torch, mode):
    module = module_of(torch).train(mode)
    ek.freeze(module)
    assert not module[1][0].training
    ek.unfreeze(module)
    assert module[1][0].training is mode and "train" not in vars(module[1][0])


def test_the_last_mode_asked_for_comes_back(torch):
    module = module_of(torch)
    ek.freeze(module)
    module.eval()
    ek.unfreeze(module)
    assert not module[1][0].training


def test_a_file_brings_weights_into_a_frozen_module(torch):
    module, source = module_of(torch), module_of(torch)
    stepped(torch, source, 2)
    ek.freeze(module, affine=True)
    module.load_state_dict(source.state_dict())
    ek.unfreeze(module)
    assert kept(module) == kept(source)
    assert [name for name, _ in module[1][0].named_parameters()] == ["weight", "bias"]


ALONE = """
import sys, torch, evenkeel
module = torch.nn.BatchNorm1d(3)
evenkeel.freeze(module)
with evenkeel.no_update(module):
    module.train()(torch.ones(2, 3))
evenkeel.decay_exclusions(module)
assert module.num_batches_tracked == 0 and not module.training
assert "keras" not in sys.modules
"""


def test_torch_needs_no_keras(torch):
    subprocess.run([sys.executable, "-c", ALONE], env={**os.environ, "PYTHONPATH": str(SOURCE)}, check=True)


def test_a_module_without_statistics(torch):
    with pytest.raises(ArgumentError, match=r"BatchNorm1d\(3.*keeps no running statistics"):
        ek.freeze(torch.nn.Sequential(torch.nn.BatchNorm1d(3, track_running_stats=False)))


def test_passes_of_torch_do_not_count(torch):
    module = module_of(torch)
    before = kept(module)
    with ek.no_update(module):
        loss = module(torch.tensor(X)).sum()
        assert kept(module) != before
    assert kept(module) == before
    loss.backward()


def test_a_backward_pass_may_come_later(torch):
    module = module_of(torch).eval()
    with ek.no_update(module):
        loss = module(torch.tensor(X)).sum()
    loss.backward()
    assert module[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("guarded", [True, False])
def test_recomputation_counts_once(torch, guarded):
    once, twice = module_of(torch), module_of(torch)
    once(torch.tensor(X))

    def contexts():
        return contextlib.nullcontext(), ek.no_update(twice) if guarded else contextlib.nullcontext()

    checkpoint = torch.utils.checkpoint.checkpoint
    checkpoint(twice, torch.tensor(X), use_reentrant=False, context_fn=contexts).sum().backward()
    assert (kept(once) == kept(twice)) is guarded


# Ours in torch.


def our_module(torch, **arguments):
    from evenkeel import torch as ours

    module = module_of(torch)
    module[1][0] = ours.BatchNorm1d(4, **arguments)
    return module


@pytest.mark.parametrize("all_of_it", [False, True])
@pytest.mark.parametrize(
    "copied", [lambda module: module, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]
)
def test_ours_are_frozen_by_their_own_mark(torch, copied, all_of_it):
    module = our_module(torch, average="debiased", renorm=True)
    optimizer = stepped(torch, module, 2)
    ek.freeze(module, affine=all_of_it)
    optimizer.step()  # a gradient from before does not come through where weight and bias stay
    module = copied(module)
    before = kept(module)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, weight_decay=0.1)
    for _ in range(3):
        module.train()(torch.tensor(X[:BATCH])).square().mean().backward()
        optimizer.step()
    after = kept(module)
    assert {name for name in before if before[name] != after[name]} == (set() if all_of_it else {"weight", "bias"})
    assert module[1][0].frozen == ("all" if all_of_it else True) and module[1][0].training
    ek.unfreeze(module)
    stepped(torch, module, 1)
    assert [name for name in after if kept(module)[name] == after[name]] == []
    assert module[1][0].frozen is False


def test_a_gradient_from_before_does_not_move_ours(torch):
    module = our_module(torch)
    optimizer = stepped(torch, module, 2)
    stepped(torch, module, 0, optimizer)
    ek.freeze(module, affine=True)
    before = kept(module)
    optimizer.step()
    assert kept(module) == before


def test_ours_obey_when_they_are_compiled(torch):
    module = our_module(torch)
    call = torch.compile(module, backend="eager")
    call(torch.tensor(X))
    ek.freeze(module)
    before = kept(module)
    call(torch.tensor(X))
    assert kept(module) == before
    ek.unfreeze(module)
    call(torch.tensor(X))
    assert kept(module) != before


def test_what_was_frozen_as_torch_s_is_unfrozen_as_ours(torch):
    from evenkeel import torch as ours

    module = module_of(torch)
    ek.freeze(module, affine=True)
    ours.convert(module)
    before = kept(module)
    module.train()(torch.tensor(X))
    assert kept(module) == before
    ek.freeze(module)
    assert module[1][0].frozen is True and "train" not in vars(module[1][0])
    ek.unfreeze(module)
    module(torch.tensor(X))
    assert kept(module) != before
    assert [name for name, _ in module[1][0].named_parameters()] == ["weight", "bias"]


def test_passes_of_ours_do_not_count(torch):
    module = our_module(torch, renorm=True, average="debiased")
    module(torch.tensor(X))
    before = kept(module)
    with ek.no_update(module):
        module(5 * torch.tensor(X)).sum().backward()
        assert [name for name in before if kept(module)[name] == before[name]] == ["weight", "bias"]
    assert kept(module) == before


def test_ours_of_any_rank_without_statistics(torch):
    from evenkeel import torch as ours

    with pytest.raises(ArgumentError, match=r"BatchNorm\(3.*keeps no running statistics"):
        ek.freeze(torch.nn.Sequential(ours.BatchNorm(3, track_running_stats=False)))
