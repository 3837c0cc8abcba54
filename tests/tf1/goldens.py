# SPDX-License-Identifier: Apache-2.0
"""What TensorFlow 1.15 wrote down: cases, their arrays, how arguments are encoded, how close is close enough."""

import builtins
import contextlib
import functools
import json
import operator
import re

import numpy as np
import pytest
import tensorflow as tf

from conftest import GOLDENS

v1 = tf.compat.v1

BASE = {"float32": 3e-6, "float64": 1e-12, "float16": 2e-3, "bfloat16": 2e-2}
FLOOR = {"float64": 1e-14}
# Of the largest value, where 1.15 was not compared with float64. The README has 1e-5; in the convolutional trainings,
# beta after one step is a learning rate times a sum of 1024 gradients that cancel, and 3e-5 apart from run to run.
UNMEASURED = 1e-4

name = operator.itemgetter("id")  # of a case: `pytest.mark.parametrize("case", cases(...), ids=name)`


@functools.cache
def _manifest():
    return json.loads((GOLDENS / "manifest.json").read_text())["cases"]


def cases(kind=None, api=None):
    """All cases of a protocol (`"function"`) and an API (`"tf.nn.moments"`)."""
    return [case for case in _manifest() if kind in (None, case["kind"]) and api in (None, case["api"])]


def arrays(case):
    """name -> array; bfloat16 is stored as float32."""
    return dict(_content(case["npz"])) if case["npz"] else {}


@functools.lru_cache(maxsize=4)  # a test asks for each array of its case
def _content(path):
    with np.load(GOLDENS / path) as file:
        content = dict(file)
    for array in content.values():
        array.flags.writeable = False
    return content


def starting_with(prefix, values):
    """The arrays `prefix...`, without the prefix.

    Example:
        >>> starting_with("state_0/", {"state_0/bn/beta": 1, "state_1/bn/beta": 2})
        {'bn/beta': 1}
    """
    return {key[len(prefix) :]: value for key, value in values.items() if key.startswith(prefix)}


# Numbers.


def group_of(name):
    """The group of an array, by which `tf115_vs_float64` is kept.

    Example:
        >>> [group_of(name) for name in ("y_train_3", "out_y", "out_0", "dx_0", "dgamma_1", "y_infer", "state_2/beta")]
        ['y', 'y', 'out', 'dx', 'dgamma', 'y_infer', 'state']
        >>> [group_of(name) for name in ("out_batch_mean", "dx_from_mean", "initial/bn/beta", "out_second_0")]
        ['batch_mean', 'dx', 'state', 'out']
    """
    name = re.sub(r"_\d+$", "", name.split("/", 1)[0])
    name = {"initial": "state", "y_train": "y", "out_second": "out"}.get(name, name)
    return re.sub(r"^out_|_from_.*$", "", name)


def tolerance(case, reference, group):
    """Largest absolute difference that is close enough; the README of the goldens has the rule."""
    size = np.abs(reference[np.isfinite(reference)]).max(initial=0.0)
    measured = case.get("tf115_vs_float64")
    if measured is None:
        return UNMEASURED * size
    dtype = case.get("dtype", "float32")
    return BASE[dtype] * size + 4 * (measured.get(group) or 0.0) + FLOOR.get(dtype, 1e-9)


def check(case, got, name, group=None):
    """`got` is the array `name` of the case: same shape, NaN and infinity in the same places, close elsewhere."""
    reference, got = arrays(case)[name].astype("float64"), np.asarray(got).astype("float64")
    assert got.shape == reference.shape, f"{name}: shape {got.shape}, 1.15 has {reference.shape}"
    allowed = tolerance(case, reference, group or group_of(name))
    np.testing.assert_allclose(got, reference, rtol=0, atol=allowed, equal_nan=True, err_msg=f"{case['id']}: {name}")


# Arguments.


def decoded(value, arrays, feeds):
    """An argument as 1.15 was given it.

    Args:
        value: from the manifest: plain JSON, or with objects such as `{"$array": "rmax"}` in it.
        arrays: of the case.
        feeds: gets name -> placeholder for each `{"$feed": name}`; `fed` says what to feed.
    """
    if isinstance(value, list):
        return [decoded(item, arrays, feeds) for item in value]
    if not isinstance(value, dict):
        return value
    for kind, decode in DECODERS.items():
        if kind in value:
            return decode(value, arrays, feeds)
    return {key: decoded(item, arrays, feeds) for key, item in value.items()}


def fed(feeds, arrays, step):
    """Feed dictionary of `decoded`'s placeholders at a step: a number, or `"test"`."""
    return {placeholder: arrays[f"{name}_{step}"] for name, placeholder in feeds.items()}


def _feed(value, arrays, feeds):
    name = value["$feed"]
    if name not in feeds:
        first = arrays[f"{name}_0"]
        feeds[name] = v1.placeholder(first.dtype, [None, *first.shape[1:]] if first.ndim else [], name)
    return feeds[name]


def _initializer(value, arrays, feeds):
    kind = value["$init"]
    if kind == "array":
        return v1.constant_initializer(arrays[value["array"]])
    return v1.constant_initializer({"zeros": 0.0, "ones": 1.0}.get(kind, value.get("value")))


def _regularizer(value, arrays, feeds):
    kind, scale = value["$reg"], value["scale"]
    if kind.endswith("l1"):
        return lambda weights: scale * tf.reduce_sum(tf.abs(weights))
    return lambda weights: scale * tf.reduce_sum(tf.square(weights)) / (2 if kind == "contrib_l2" else 1)


def _callable(value, arrays, feeds):
    if value["$callable"] == "scale_shift_const":
        return lambda shape: (tf.constant(arrays[value["scale"]]), tf.constant(arrays[value["bias"]]))
    return lambda shape: (tf.fill(shape[-1:], value["scale"]), tf.fill(shape[-1:], value["bias"]))


def _constraint(value, arrays, feeds):
    if value["$constraint"] == "non_neg":
        return tf.nn.relu
    return lambda weights: tf.clip_by_norm(weights, value["value"], axes=[0])


def _variable(value, arrays, feeds):
    name = value["$variable"]
    return v1.get_variable(name, [], initializer=v1.zeros_initializer(), trainable=False)


DECODERS = {
    "$array": lambda value, arrays, feeds: tf.constant(arrays[value["$array"]]),
    "$feed": _feed,
    "$init": _initializer,
    "$reg": _regularizer,
    "$callable": _callable,
    "$activation": lambda value, arrays, feeds: getattr(v1.nn, value["$activation"]),
    "$constraint": _constraint,
    "$graphkey": lambda value, arrays, feeds: getattr(v1.GraphKeys, value["$graphkey"]),
    "$variable": _variable,
}


# Errors.

MENDED = "only supports NHWC tensor format"  # 1.15's CPU could not; ours can


def check_error(case, module, session):
    """The program of an `error` case, on `module` as `tf`, ends as it did in 1.15: with that type of error or none."""

    def run(fetch, feed=None):
        session.run(v1.global_variables_initializer())
        return session.run(fetch, feed)

    meta = case["meta"]
    expected = contextlib.nullcontext()
    if meta["raises"] and MENDED not in meta["error_message"]:
        name = meta["error_type"]
        expected = pytest.raises(getattr(builtins, name, None) or getattr(tf.errors, name))
    with expected:
        exec(case["source"], {"tf": module, "np": np, "run": run})


# Graphs.


def described(graph):
    """What the graph holds, in the words of `meta`: names, order, shapes, types and collections of its variables."""
    variables = graph.get_collection(v1.GraphKeys.GLOBAL_VARIABLES)
    trainable = graph.get_collection(v1.GraphKeys.TRAINABLE_VARIABLES)
    names = [variable.op.name for variable in variables]
    keys = [key for key in graph.collections if isinstance(key, str)]
    members = {key: {getattr(item, "name", None) for item in graph.get_collection(key)} for key in keys}
    return {
        "global_variables": sorted(names),
        "global_variables_creation_order": names,
        "trainable_variables": sorted(variable.op.name for variable in trainable),
        "trainable_variables_creation_order": [variable.op.name for variable in trainable],
        "variable_shapes": {variable.op.name: variable.shape.as_list() for variable in variables},
        "variable_dtypes": {variable.op.name: variable.dtype.base_dtype.name for variable in variables},
        "collections": {
            variable.op.name: sorted(key for key in keys if variable.name in members[key]) for variable in variables
        },
    }


def recorded(case):
    """What `described` would have said in 1.15."""
    keys = ("variable_shapes", "variable_dtypes", "collections")
    sets = ("global_variables", "trainable_variables")
    return {key: case["meta"][key] for key in (*keys, *sets, *(f"{key}_creation_order" for key in sets))}


def update_ops(graph):
    """Names of the operations in UPDATE_OPS, in order."""
    return [getattr(update, "op", update).name for update in graph.get_collection(v1.GraphKeys.UPDATE_OPS)]
