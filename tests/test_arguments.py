# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from evenkeel import arguments
from evenkeel.errors import ArgumentError, AxisError, RenormLimitError
from evenkeel.functional.renorm import Limits


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), "much", None])
def test_what_is_no_share(value):
    with pytest.raises(ArgumentError, match=f"momentum={value!r}"):
        arguments.number("momentum", value, low=0, high=1)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", None])
def test_what_is_no_positive_integer(value):
    with pytest.raises(ArgumentError, match=f"size={value!r}"):
        arguments.positive_integer("size", value)


@pytest.mark.parametrize("value", ["a", "1", 1.7, None, True, [1, "a"], [[1]], [False, 1]])
def test_what_is_no_axis(value):
    with pytest.raises(AxisError, match="is not an integer"):
        arguments.axes(value)


@pytest.mark.parametrize(("value", "expected"), [(1, (1,)), (np.int64(-1), (-1,)), ((1, 2), (1, 2)), ([3], (3,))])
def test_axes(value, expected):
    assert arguments.axes(value) == expected


@pytest.mark.parametrize("value", [(0, 0), (1, -3), (-1, 3)])
def test_an_axis_twice(value):
    with pytest.raises(AxisError, match="twice"):
        arguments.axes_within(arguments.axes(value), 4)


@pytest.mark.parametrize(
    "limits",
    [{"rmax": 1.0, "rmin": 2.0}, {"dmax": -1.0}, {"dmax": np.float32(-1)}, {"rmax": "x"}, {"nonsense": 1.0}],
)
def test_limits_that_nothing_satisfies(limits):
    with pytest.raises(RenormLimitError, match="renorm limits"):
        Limits.of(limits)
