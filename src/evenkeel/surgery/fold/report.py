# SPDX-License-Identifier: Apache-2.0
"""What a fold did, what it left and why, and what shows that the model still computes the same."""

from __future__ import annotations

from typing import NamedTuple


class Folded(NamedTuple):
    """normalizer, into: names of the layers; side: where the layer stands, `"before"` or `"after"` the normalizer."""

    normalizer: str
    into: str
    side: str


class Left(NamedTuple):
    """normalizer: its name; reason: why it was not folded, in words."""

    normalizer: str
    reason: str


class Difference(NamedTuple):
    """Of the outputs before and after.

    data: `"random"` or `"given"`.
    dtype: what both models computed in.
    largest: the largest of all differences, in the units of the outputs.
    bound: what rounding alone may do to this model.
    """

    data: str
    dtype: str
    largest: float
    bound: float


class Change(NamedTuple):
    """A number before and after."""

    before: float
    after: float


class FoldReport(NamedTuple):
    """What a fold did.

    folded: normalizers that are gone, and what does their work.
    left: those that are still there.
    differences: between the outputs of the given model and the folded one.
    parameters: how many numbers the model holds, moving statistics among them.
    multiply_adds: of one example, in convolutions, dense layers and normalizers; an unknown size counts as 1.
    seconds: the median of a few runs on the data.
    """

    folded: list[Folded]
    left: list[Left]
    differences: list[Difference]
    parameters: Change
    multiply_adds: Change
    seconds: Change

    def __str__(self) -> str:
        lines = [f"folded {len(self.folded)} of {len(self.folded) + len(self.left)} normalizers"]
        lines += [f"  {name} into {into} {side} it" for name, into, side in self.folded]
        if self.left:
            lines += ["left as they are", *(f"  {name}: {reason}" for name, reason in self.left)]
        lines.append("largest difference of the outputs")
        lines += [
            f"  {dtype}, {data} data: {largest:.2g}; rounding may make {bound:.2g}"
            for data, dtype, largest, bound in self.differences
        ]
        for name, (old, new), form in (
            ("parameters", self.parameters, ",.0f"),
            ("multiply-adds of an example", self.multiply_adds, ",.0f"),
            ("latency in ms", Change(*(1000 * value for value in self.seconds)), ".2f"),
        ):
            lines.append(f"{name}: {old:{form}} before, {new:{form}} after")
        return "\n".join(lines)
