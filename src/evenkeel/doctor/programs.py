# SPDX-License-Identifier: Apache-2.0
"""What a Python program says: which function a name means, which values an expression may have, what a call reaches.

Nothing is imported and nothing is run. Where the program does not say, the answer is "unknown", and a rule is silent.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from evenkeel.doctor.evidence import Source
from evenkeel.doctor.finding import Finding, Severity

__all__ = [
    "UNKNOWN",
    "Function",
    "Loop",
    "Normalization",
    "Program",
    "With",
    "inside",
    "is_evaluation",
    "last",
    "of",
    "receiver",
    "written",
]

Function = ast.FunctionDef | ast.AsyncFunctionDef
Loop = ast.For | ast.AsyncFor | ast.While
With = ast.With | ast.AsyncWith
UNKNOWN = object()
# The value of what nobody can follow, such as the variable of a loop.
_OPAQUE = ast.Name("", ast.Load())

# The same thing under several names. `slim` here is all of tf.contrib that these rules look at.
_SYNONYMS = (
    (r"evenkeel\.tf1|tensorflow\.compat\.v[12]", "tensorflow"),
    (r"tf_slim|tensorflow\.contrib\.(slim|layers|framework|training)", "slim"),
    (r"tensorflow\.(contrib\.|python\.)?keras|tf_keras", "keras"),
    (r"keras\.(_tf_keras|api\._v[12])\.keras", "keras"),
    (r"evenkeel(\.layers\.keras)?\.BatchNormalization", "keras.layers.BatchNormalization"),
    (r"keras\.layers\.(\w+\.)+BatchNormalization", "keras.layers.BatchNormalization"),
    (r"torch\.nn\.modules\.\w+|evenkeel\.(layers\.)?torch", "torch.nn"),
    (r"flax\.nnx\.nn\.normalization", "flax.nnx"),
)
# Full name -> family, and the positions of the arguments that rules ask for.
_NAMES: Mapping[str, tuple[str, Mapping[str, int]]] = {
    "tensorflow.layers.batch_normalization": ("layers", {"momentum": 2, "training": 14}),
    "tensorflow.layers.BatchNormalization": ("layers", {"momentum": 1}),
    "slim.batch_norm": ("slim", {"decay": 1}),
    "tflearn.batch_normalization": ("tflearn", {"decay": 4}),
    "tflearn.layers.normalization.batch_normalization": ("tflearn", {"decay": 4}),
    "tensorflow.nn.batch_normalization": ("nn", {}),
    "tensorflow.nn.fused_batch_norm": ("nn", {}),
    "tensorflow.nn.batch_norm_with_global_normalization": ("nn", {}),
    "keras.layers.BatchNormalization": ("keras", {"momentum": 1}),
    "keras.layers.SyncBatchNormalization": ("keras", {"momentum": 1}),
    "keras.layers.experimental.SyncBatchNormalization": ("keras", {"momentum": 1}),
    **{
        f"torch.nn.{kind}": ("torch", {"momentum": 2, "track_running_stats": 4})
        for kind in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "BatchNorm")  # the last is ours
    },
    **{f"torch.nn.LazyBatchNorm{n}d": ("torch", {"momentum": 1, "track_running_stats": 3}) for n in (1, 2, 3)},
    "flax.linen.BatchNorm": ("flax", {"use_running_average": 0, "momentum": 2}),
    "flax.nnx.BatchNorm": ("flax", {}),
}
PHASES = {"layers": ("training", False), "slim": ("is_training", True), "flax": ("use_running_average", UNKNOWN)}
# Whole models of others that have batch normalization: those of torchvision and keras.applications. `__dict__` stands
# for the one of a name that is not in the text, `models.__dict__[arguments.arch]`; all but a few have some.
_READY = re.compile(
    r"(?P<library>torchvision\.models|keras\.applications)\.([\w.]*\.)?"
    r"(resnet|resnext|wide_resnet|densenet|mobilenet|inception|xception|googlenet|shufflenet|mnasnet|efficientnet|"
    r"regnet|nasnet|vgg\d+_bn|__dict__)\w*",
    re.IGNORECASE,
)
# What gives back the module it was given.
_WRAPPERS = {
    "torch.nn.DataParallel",
    "torch.nn.parallel.DataParallel",
    "torch.nn.parallel.DistributedDataParallel",
    "torch.nn.SyncBatchNorm.convert_sync_batchnorm",
    "torch.nn.convert",  # of evenkeel.torch
    "torch.compile",
    "tensorflow.constant",
    "tensorflow.convert_to_tensor",
    "tensorflow.cast",
    "tensorflow.identity",
    "bool",
    "float",
    "list",
}
# What is a model by its arguments.
_COMPOSE = ("keras.Model", "keras.Sequential", "keras.models.", "torch.nn.", "torch.optim.swa_utils.")
_SAME = {"to", "cuda", "cpu", "float", "double", "half", "bfloat16", "train", "eval", "requires_grad_"}
_CHANGES = {"append", "extend", "insert", "remove", "update", "setdefault", "pop"}
_EVALUATION = re.compile(
    r"(^|_)(test(ing)?|val|valid(ate|ation)?|eval(uate|uation)?|pred(ict|iction)?|infer(ence)?)(_|\d|$)", re.IGNORECASE
)
_MOST_VALUES, _DEEPEST = 200, 30


class Normalization(NamedTuple):
    """A call that makes batch normalization, or hands its function to a layer that will.

    family: "layers" (tf.layers), "slim" (all of tf.contrib), "tflearn", "nn" (tf.nn), "keras", "torch" or "flax".
    arguments: name -> what it may be given, also by an arg_scope or `normalizer_params`.
    open: there may be more arguments than these.
    """

    call: ast.Call
    family: str
    arguments: Mapping[str, list[ast.expr]]
    open: bool


@dataclass(eq=False)
class _Scope:
    """A module, a class or a function, and what its names are bound to: an expression, a definition, an import."""

    node: ast.AST
    outer: _Scope | None
    names: dict[str, list[ast.AST | str]] = field(default_factory=lambda: defaultdict(list))


@functools.lru_cache(maxsize=4)
def of(source: Source) -> Program:
    """The program of a source; each is looked through once, for all rules.

    Example:
        >>> program = of(Source.of("import tensorflow.compat.v1 as tf; bn = tf.layers.batch_normalization; y = bn(1)"))
        >>> program.names(program.calls[0].func)
        frozenset({'tensorflow.layers.batch_normalization'})
    """
    return Program(source)


class Program:
    """A program that can be asked.

    calls: all of them, in the order of the text.
    words: every name, attribute, keyword and string of it.
    modules: the packages that it imports.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lines = source.text.split("\n")  # as ast counts; splitlines cuts at form feeds too
        self._parents: dict[ast.AST, ast.AST] = {}
        self._scopes: dict[ast.AST, _Scope] = {}
        self._members: dict[str, list[ast.AST]] = defaultdict(list)  # name -> methods of that name
        self._attributes: dict[ast.AST, dict[str, list[ast.expr]]] = defaultdict(lambda: defaultdict(list))
        self._stars: list[str] = []
        self._names: dict[ast.expr, frozenset[str]] = {}
        self._values: dict[ast.expr, list[ast.expr]] = {}
        self._deep = 0
        self.nodes = self._read(source.tree)
        calls = (node for node in self.nodes if isinstance(node, ast.Call))
        self.calls = sorted(calls, key=lambda call: (call.end_lineno or 0, call.end_col_offset or 0))
        self.words = {word for node in self.nodes for word in _words(node)}
        self.modules = {item.partition(".")[0] for item in _imports(self.nodes)}

    # --- reading

    def _read(self, tree: ast.Module) -> list[ast.AST]:
        """All nodes, each with its parent and its scope; without recursion, however deep they are nested."""
        outermost = _Scope(tree, None)
        nodes: list[ast.AST] = []
        todo: list[tuple[ast.AST, _Scope]] = [(tree, outermost)]
        while todo:
            node, scope = todo.pop()
            nodes.append(node)
            self._scopes[node] = scope
            self._bind(node, scope)
            inner, outside = scope, set()
            if isinstance(node, Function | ast.Lambda | ast.ClassDef):
                inner = _Scope(node, scope)
                if not isinstance(node, ast.ClassDef):
                    outside = {*node.args.defaults, *filter(None, node.args.kw_defaults)}
                    for parameter in _parameters(node.args):
                        inner.names[parameter.arg].append(parameter)
                        self._parents[parameter] = node
            for child in ast.iter_child_nodes(node):
                self._parents[child] = node
                if isinstance(child, ast.arguments):
                    todo.extend((default, scope) for default in outside)
                    self._parents |= dict.fromkeys(outside, node)
                else:
                    todo.append((child, inner))
        return nodes

    def _bind(self, node: ast.AST, scope: _Scope) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                scope.names[node.name].append(node)
                if isinstance(scope.node, ast.ClassDef):
                    self._members[node.name].append(node)
            case ast.Import():
                for alias in node.names:
                    scope.names[alias.asname or alias.name.partition(".")[0]] = [
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    ]
            case ast.ImportFrom():
                module = "." * node.level + (node.module or "")
                self._stars += [module for alias in node.names if alias.name == "*"]
                for alias in node.names:
                    scope.names[alias.asname or alias.name] = [f"{module}.{alias.name}"]
            case ast.Assign():
                for target in node.targets:
                    self._assign(target, node.value, scope)
            case ast.AnnAssign(value=ast.expr() as value) | ast.NamedExpr(value=value):
                self._assign(node.target, value, scope)
            case ast.AugAssign():
                self._assign(node.target, _OPAQUE, scope)
                self._assign(node.target, node.value, scope)
            case ast.For() | ast.AsyncFor() | ast.comprehension():
                self._assign(node.target, _OPAQUE, scope)
            case ast.withitem(optional_vars=ast.expr() as target):
                self._assign(target, node.context_expr, scope)
            case ast.Call(func=ast.Attribute(value=ast.Name() as changed, attr=name)) if name in _CHANGES:
                self._assign(changed, _OPAQUE, scope)

    def _assign(self, target: ast.expr, value: ast.expr, scope: _Scope) -> None:
        todo = [(target, value)]
        while todo:
            target, value = todo.pop()
            match target, value:
                case (ast.Tuple() | ast.List(), ast.Tuple() | ast.List()) if len(target.elts) == len(value.elts):
                    todo += zip(target.elts, value.elts, strict=True)
                case ast.Tuple() | ast.List(), _:
                    todo += [(element, _OPAQUE) for element in target.elts]
                case ast.Starred(), _:
                    todo.append((target.value, _OPAQUE))
                case ast.Name(), _:
                    scope.names[target.id].append(value)
                case ast.Subscript(value=ast.Name() as changed), _:
                    scope.names[changed.id].append(_OPAQUE)
                case ast.Attribute(value=ast.Name(id="self"), attr=name), _:
                    owner = _class(scope)
                    if owner is not None:
                        self._attributes[owner][name].append(value)

    # --- names and values

    def _bindings(self, name: ast.Name) -> list[ast.AST | str]:
        scope = start = self._scopes.get(name)
        while scope is not None:
            visible = scope is start or not isinstance(scope.node, ast.ClassDef)
            if visible and name.id in scope.names:
                return scope.names[name.id]
            scope = scope.outer
        return []

    def values(self, expression: ast.expr) -> list[ast.expr]:
        """The ends of all ways from an expression back through assignments, parameters and what gives back the same.

        An end is a constant, a call, or something that cannot be followed.
        """
        if expression not in self._values:
            self._values[expression] = self._followed(expression)
        return self._values[expression]

    def _followed(self, expression: ast.expr) -> list[ast.expr]:
        found: list[ast.expr] = []
        seen: set[ast.AST] = set()
        todo = [expression]
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            sources = self._sources(node) if len(seen) < _MOST_VALUES else [_OPAQUE]
            if sources is None:
                found.append(node)
            else:
                todo += sources
        return found or [_OPAQUE]

    def _sources(self, node: ast.expr) -> list[ast.expr] | None:
        match node:
            case ast.Name():
                bound = self._bindings(node)
                if len(bound) > _MOST_VALUES:
                    return [_OPAQUE]
                if not bound or any(isinstance(item, str | Function | ast.ClassDef) for item in bound):
                    return None
                found: list[ast.expr] = []
                for item in bound:
                    found += self._given(item) if isinstance(item, ast.arg) else [item]  # type: ignore[list-item]
                return found
            case ast.IfExp():
                return [node.body, node.orelse]
            case ast.BoolOp(op=ast.Or()):
                return node.values
            case ast.NamedExpr() | ast.Await():
                return [node.value]
            case ast.Attribute(value=ast.Name(id="self")):
                owner = _class(self._scopes.get(node))
                return (self._attributes[owner].get(node.attr) if owner else None) or None
            case ast.Call(args=[first, *_]) if self.names(node.func) & _WRAPPERS:
                return [first]
            case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in _SAME and not self._imported(value):
                return [value]
        return None

    def _given(self, parameter: ast.arg) -> list[ast.expr]:
        """What the callers of a function in this program give a parameter, and its default."""
        function = self._parents[parameter]
        if not isinstance(function, Function) or _special(function):
            return [_OPAQUE]
        calls, always = self._callers.get(function, ([], False))
        if len(calls) > _MOST_VALUES:
            return [_OPAQUE]
        position, default = _signature(function, parameter, isinstance(self._scopes[function].node, ast.ClassDef))
        found: list[ast.expr] = [] if calls and always else [_OPAQUE]
        for call in calls:
            found += _argument(call, parameter.arg, position) or [default or _OPAQUE]
        return found

    @functools.cached_property
    def _callers(self) -> dict[ast.AST, tuple[list[ast.Call], bool]]:
        """Function -> its calls, and whether these are all the uses of its name."""
        found: dict[ast.AST, tuple[list[ast.Call], bool]] = {}
        called = {call.func for call in self.calls}
        for call in self.calls:
            for function in self.defined(call.func):
                found.setdefault(function, ([], True))[0].append(call)
        for node in self.nodes:
            if isinstance(node, ast.Name | ast.Attribute) and node not in called:
                for function in self.defined(node):
                    found[function] = found.get(function, ([], False))[0], False
        return found

    def defined(self, expression: ast.expr) -> list[ast.AST]:
        """The functions and methods of this program that an expression names; for a class its `__init__`."""
        found: list[ast.AST] = []
        if isinstance(expression, ast.Name):
            found = [item for item in self._bindings(expression) if isinstance(item, Function | ast.ClassDef)]
        elif isinstance(expression, ast.Attribute) and not self._imported(expression):
            found = self._members.get(expression.attr, [])
            owner = _class(self._scopes.get(expression)) if _is_self(expression.value) else None
            found = [item for item in found if self._scopes[item].node is owner] or found
        return [item for one in found for item in (_constructors(one) if isinstance(one, ast.ClassDef) else [one])]

    def _imported(self, expression: ast.expr) -> bool:
        """It starts at a module: `np.x.y`."""
        while isinstance(expression, ast.Attribute):
            expression = expression.value
        return isinstance(expression, ast.Name) and any(isinstance(item, str) for item in self._bindings(expression))

    def classes(self, expression: ast.expr) -> list[ast.ClassDef]:
        """The classes of this program that it may name."""
        names = [value for value in self.values(expression) if isinstance(value, ast.Name)]
        return [item for name in names for item in self._bindings(name) if isinstance(item, ast.ClassDef)]

    def names(self, expression: ast.expr) -> frozenset[str]:
        """The full names that an expression may stand for, each library under one spelling."""
        if expression not in self._names and self._deep < _DEEPEST:
            self._names[expression] = frozenset()  # an answer for whoever asks in a circle
            self._deep += 1
            found = {name for value in self.values(expression) for name in self._called(value)}
            self._deep -= 1
            self._names[expression] = frozenset(map(_canonical, found))
        return self._names.get(expression, frozenset())

    def _called(self, value: ast.expr) -> Iterator[str]:
        match value:
            case ast.Subscript(ast.Attribute(module, "__dict__"), key):
                ends = {end if isinstance(end, str) else "__dict__" for end in self.constants(key)}
                yield from (f"{start}.{end}" for start in self.names(module) for end in ends)
        path: list[str] = []
        while isinstance(value, ast.Attribute):
            path.insert(0, value.attr)
            value = value.value
        if isinstance(value, ast.Call) and not path and self._is_partial(value):
            yield from self.names(value.args[0])
        if not isinstance(value, ast.Name) or value is _OPAQUE:
            return
        bound = self._bindings(value)
        if not bound:
            yield from [".".join([value.id, *path]), *(".".join([star, value.id, *path]) for star in self._stars)]
        for item in bound:
            if isinstance(item, str):
                yield ".".join([item, *path])
            elif path and not isinstance(item, Function | ast.ClassDef):
                for alias in self.names(value):
                    yield ".".join([alias, *path])
                return

    def _is_partial(self, call: ast.Call) -> bool:
        return bool(call.args) and isinstance(call.func, ast.Name | ast.Attribute) and last(call.func) == "partial"

    def constants(self, expression: ast.expr) -> set[object]:
        """The Python values that it may have; `UNKNOWN` is among them where it may be something else."""
        return {_constant(value) for value in self.values(expression)}

    # --- calls

    def calls_to(self, *names: str) -> list[ast.Call]:
        """The calls of functions with these full names."""
        if self.words.isdisjoint(name.rpartition(".")[2] for name in names):
            return []
        return [call for call in self.calls if self.names(call.func) & set(names)]

    def methods(self, *names: str) -> list[ast.Call]:
        """The calls of methods with these names, whatever the object; a function of a module is none."""
        return [
            call
            for call in self.calls
            if isinstance(call.func, ast.Attribute) and call.func.attr in names and not self._imported(call.func)
        ]

    def received(self, call: ast.Call, given: ast.expr, function: ast.AST) -> list[str]:
        """Names of the parameters by which a function of this program gets an argument of a call."""
        if not isinstance(function, Function) or _special(function):
            return []
        method = isinstance(self._scopes[function].node, ast.ClassDef)
        return [
            parameter.arg
            for parameter in _parameters(function.args)
            if given in _argument(call, parameter.arg, _signature(function, parameter, method)[0])
        ]

    def argument(self, call: ast.Call, name: str, position: int | None = None) -> ast.expr | None:
        """What a call is given by name or position; None where it is not."""
        return next(iter(_argument(call, name, position)), None)

    def has_spread(self, call: ast.Call) -> bool:
        """It is given `*args` or `**kwargs`."""
        return any(isinstance(item, ast.Starred) for item in call.args) or any(k.arg is None for k in call.keywords)

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """What stands round a node, the nearest first."""
        while node in self._parents:
            node = self._parents[node]
            yield node

    def around(self, node: ast.AST, *kinds: type) -> ast.AST | None:
        """The nearest of some kinds round a node."""
        return next((item for item in self.above(node) if isinstance(item, kinds)), None)

    def function(self, node: ast.AST) -> ast.AST:
        """The function round a node, or the module."""
        return self.around(node, ast.FunctionDef, ast.AsyncFunctionDef) or self._source.tree

    def reached(self, *starts: ast.AST) -> list[ast.AST]:
        """The nodes inside, and those of the functions and classes of this program that these use."""
        seen: set[ast.AST] = set()
        todo = list(starts)
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if isinstance(node, ast.Name):
                todo += [item for item in self._bindings(node) if isinstance(item, Function | ast.ClassDef)]
            elif isinstance(node, ast.Attribute):
                todo += self.defined(node)
            todo += ast.iter_child_nodes(node)
        return list(seen)

    # --- batch normalization

    @functools.cached_property
    def normalizations(self) -> list[Normalization]:
        """All of the program, in the order of the text."""
        if self.words.isdisjoint(name.rpartition(".")[2] for name in _NAMES):
            return []
        return [item for call in self.calls for item in self._normalizations(call)]

    def _normalizations(self, call: ast.Call) -> Iterator[Normalization]:
        for name in self.names(call.func) & _NAMES.keys():
            family, positions = _NAMES[name]
            arguments, more = self._arguments(call, positions)
            yield self._scoped(Normalization(call, family, arguments, more))
            return
        function = self.argument(call, "normalizer_fn")
        if function is not None and "slim.batch_norm" in self.names(function):
            parameters = self.argument(call, "normalizer_params")
            found, more = self._dictionary(parameters) if parameters is not None else ({}, False)
            yield self._scoped(Normalization(call, "slim", found, more))

    def _arguments(self, call: ast.Call, positions: Mapping[str, int]) -> tuple[dict[str, list[ast.expr]], bool]:
        found: dict[str, list[ast.expr]] = {}
        more = any(isinstance(item, ast.Starred) for item in call.args)
        if not more:
            found = {name: [call.args[place]] for name, place in positions.items() if place < len(call.args)}
        for keyword in call.keywords:
            if keyword.arg is not None:
                found[keyword.arg] = [keyword.value]
            else:
                others, open_ended = self._dictionary(keyword.value)
                found |= others
                more |= open_ended
        for value in self.values(call.func):
            if isinstance(value, ast.Call) and self._is_partial(value):
                found = {item.arg: [item.value] for item in value.keywords if item.arg} | found
        return found, more

    def _dictionary(self, expression: ast.expr) -> tuple[dict[str, list[ast.expr]], bool]:
        """What a dictionary of arguments holds, and whether it may hold more."""
        found: dict[str, list[ast.expr]] = defaultdict(list)
        more = False
        for value in self.values(expression):
            match value:
                case ast.Dict():
                    for key, item in zip(value.keys, value.values, strict=True):
                        if isinstance(key, ast.Constant) and isinstance(key.value, str):
                            found[key.value].append(item)
                        else:
                            more = True
                case ast.Call(func=ast.Name(id="dict"), args=[]):
                    for keyword in value.keywords:
                        found[keyword.arg or ""].append(keyword.value)
                        more |= keyword.arg is None
                case ast.Constant(value=None):
                    pass
                case _:
                    more = True
        return found, more

    def _scoped(self, item: Normalization) -> Normalization:
        """With what the arg_scopes of slim say; which of them is in force is known only when the program runs."""
        if item.family != "slim":
            return item
        arguments, more = self._arg_scopes
        return item._replace(arguments={**arguments, **item.arguments}, open=item.open or more)

    @functools.cached_property
    def _arg_scopes(self) -> tuple[dict[str, list[ast.expr]], bool]:
        """What all arg_scopes give `batch_norm`, and whether there may be more."""
        found: dict[str, list[ast.expr]] = defaultdict(list)
        more = False
        for scope in self.calls_to("slim.arg_scope"):
            functions = scope.args[0] if scope.args else None
            if not isinstance(functions, ast.List | ast.Tuple):
                # A function of this program that makes the scope has its own call of arg_scope.
                made = isinstance(functions, ast.Call) and self.defined(functions.func)
                more |= functions is not None and not made and not isinstance(functions, ast.Name)
            elif any("slim.batch_norm" in self.names(function) for function in functions.elts):
                given, open_ended = self._arguments(scope, {})
                more |= open_ended
                for name, values in given.items():
                    found[name] += values
        return found, more

    def phase(self, item: Normalization) -> set[object]:
        """True for training and False for inference, as far as they are constant; otherwise `UNKNOWN` is among them."""
        given, default = self.phases(item)
        found = {default} | {constant for value in given for constant in self.constants(value)} - {None}
        known = {value if value is UNKNOWN else bool(value) for value in found if value is not None}
        return {not value if isinstance(value, bool) else value for value in known} if item.family == "flax" else known

    def phases(self, item: Normalization) -> tuple[list[ast.expr], object]:
        """What it is given as its phase, wherever it is called, and what it takes where it is given none.

        The second is None where it always is given one, and `UNKNOWN` where the library decides.
        """
        word, default = PHASES.get(item.family, ("training", UNKNOWN))
        uses = [(item.arguments, item.open)]
        if item.family in ("keras", "layers") and _is_class(item):
            uses = [self._arguments(call, {}) for call in self._uses.get(item.call, [])]
        given = [value for arguments, _ in uses for value in arguments.get(word, [])]
        missing = not uses or any(word not in arguments for arguments, _ in uses)
        unsure = not uses or any(more for _, more in uses)
        return given, (UNKNOWN if unsure else default) if missing else None

    @functools.cached_property
    def _uses(self) -> dict[ast.expr, list[ast.Call]]:
        """Call that makes an object -> the calls of that object."""
        found: dict[ast.expr, list[ast.Call]] = defaultdict(list)
        for call in self.calls:
            function = call.func
            if isinstance(function, ast.Attribute) and function.attr in ("apply", "__call__"):
                function = function.value
            for value in self.values(function):
                found[value].append(call)
        return found

    def models(self, expression: ast.expr, library: str) -> list[ast.Call]:
        """The calls that make the models which an expression may be, of those that have batch normalization.

        library: "keras" or "torch".
        """
        calls = [value for value in self.values(expression) if isinstance(value, ast.Call)]
        return [call for call in calls if self._normalizes(call, library)]

    @functools.cached_property
    def _kept(self) -> dict[str, set[ast.AST]]:
        """Library -> calls that make a normalization with moving statistics, or a ready model that has some."""
        found: dict[str, set[ast.AST]] = defaultdict(set)
        for item in self.normalizations:
            tracks = item.arguments.get("track_running_stats", [])
            if not tracks or any(self.constants(value) != {False} for value in tracks):
                found[item.family].add(item.call)
        for call in self.calls if self.modules & {"torchvision", "keras", "tensorflow", "tf_keras", "evenkeel"} else []:
            for name in self.names(call.func):
                if ready := _READY.fullmatch(name):
                    found["torch" if ready["library"].startswith("torch") else "keras"].add(call)
        return found

    def is_ready(self, call: ast.Call) -> bool:
        """It makes a whole model of torchvision or keras.applications."""
        return any(map(_READY.fullmatch, self.names(call.func)))

    def has(self, *libraries: str) -> bool:
        """The program makes batch normalization, or ready models with it, of one of these."""
        return any(self._kept.get(library) for library in libraries)

    def _normalizes(self, call: ast.Call, library: str) -> bool:
        composed = self.classes(call.func) or any(name.startswith(_COMPOSE) for name in self.names(call.func))
        inside = self.reached(*(self.made_of(call) if composed else [call]))
        return not self._kept.get(library, set()).isdisjoint(inside)

    def made_of(self, model: ast.Call) -> set[ast.AST]:
        """What a model gets: its arguments, what they were made of, and what is added to it."""
        found: set[ast.AST] = set()
        todo: list[ast.AST] = [model]
        while todo:
            for node in ast.walk(todo.pop()):
                if node not in found:
                    found.add(node)
                    todo += self._added.get(node, [])
                    todo += self.values(node) if isinstance(node, ast.Name) else []
        return found

    @functools.cached_property
    def _added(self) -> dict[ast.AST, list[ast.Call]]:
        """What makes a model or a list -> the calls of its `add`, `append` and the like."""
        found: dict[ast.AST, list[ast.Call]] = defaultdict(list)
        for call in self.methods("add", "append", "extend", "add_module"):
            for value in self.values(receiver(call)):
                found[value].append(call)
        found.pop(_OPAQUE, None)
        return found

    # --- findings

    def finding(
        self, rule: str, node: ast.expr | ast.stmt, seen: str, remedy: str, severity: Severity | None = None
    ) -> Finding:
        """A finding at a place in the text. Python counts a column in bytes, people count characters."""
        line = self._lines[node.lineno - 1] if node.lineno <= len(self._lines) else ""
        column = len(line.encode()[: node.col_offset].decode(errors="replace")) + 1
        return Finding(rule, self._source.path, seen, remedy, severity, line=node.lineno, column=column)


def inside(nodes: Iterable[ast.AST]) -> set[ast.AST]:
    """The nodes and all below them."""
    return {item for node in nodes for item in ast.walk(node)}


def written(expression: ast.AST) -> str:
    """A dotted name as it stands in the text, such as `self.model`; empty where it is not one."""
    path: list[str] = []
    while isinstance(expression, ast.Attribute):
        path.insert(0, expression.attr)
        expression = expression.value
    return ".".join([expression.id, *path]) if isinstance(expression, ast.Name) else ""


def is_evaluation(name: str) -> bool:
    """A name that speaks of evaluation: `test_images`, `validate`, `x_val`."""
    return bool(_EVALUATION.search(name))


def receiver(call: ast.Call) -> ast.expr:
    """The object whose method a call is."""
    return call.func.value if isinstance(call.func, ast.Attribute) else call.func


def last(expression: ast.AST) -> str:
    """The last part of a dotted name."""
    return expression.attr if isinstance(expression, ast.Attribute) else getattr(expression, "id", "")


def names_in(expression: ast.AST) -> Iterator[str]:
    """The last part of every name in it."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Name | ast.Attribute):
            yield last(node)


def _words(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name():
            yield node.id
        case ast.Attribute():
            yield node.attr
        case ast.keyword(arg=str() as name):
            yield name
        case ast.Constant(value=str() as text):
            yield text
        case ast.alias():
            yield from (node.name.rpartition(".")[2], node.asname or "")
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name


def _imports(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def _canonical(name: str) -> str:
    for pattern, successor in _SYNONYMS:
        name = re.sub(rf"^({pattern})(?![\w])", successor, name)
    return name


def _parameters(arguments: ast.arguments) -> list[ast.arg]:
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [*named, *filter(None, [arguments.vararg, arguments.kwarg])]


def _signature(function: Function, parameter: ast.arg, method: bool) -> tuple[int | None, ast.expr | None]:
    """Position of a parameter in a call, and its default."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = dict(zip(reversed(positional), reversed(arguments.defaults), strict=False))
    defaults |= {name: value for name, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value}
    bound = method and not any(last(decorator) == "staticmethod" for decorator in function.decorator_list)
    position = positional.index(parameter) - bound if parameter in positional else None
    return position, defaults.get(parameter)


def _special(function: Function) -> bool:
    """It is called by way of the object, by the library."""
    return function.name in ("forward", "call", "__call__", "train_step", "test_step") or bool(
        function.args.vararg and not function.args.args
    )


def _argument(call: ast.Call, name: str, position: int | None) -> list[ast.expr]:
    for keyword in call.keywords:
        if keyword.arg == name:
            return [keyword.value]
    spread = any(isinstance(item, ast.Starred) for item in call.args)
    if position is not None and 0 <= position < len(call.args) and not spread:
        return [call.args[position]]
    return [_OPAQUE] if spread or any(keyword.arg is None for keyword in call.keywords) else []


def _constructors(model: ast.ClassDef) -> list[ast.AST]:
    return [item for item in model.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]


def _class(scope: _Scope | None) -> ast.ClassDef | None:
    while scope is not None:
        if isinstance(scope.node, ast.ClassDef):
            return scope.node
        scope = scope.outer
    return None


def _is_self(expression: ast.expr) -> bool:
    return isinstance(expression, ast.Name) and expression.id == "self"


def _is_class(item: Normalization) -> bool:
    return item.family == "keras" or last(item.call.func)[:1].isupper()


def _constant(value: ast.expr) -> object:
    match value:
        case ast.Constant():
            return value.value
        case ast.UnaryOp(op=ast.Not(), operand=ast.Constant(value=inner)):
            return not inner
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as inner)):
            return -inner
        case ast.BinOp(op=ast.Sub(), left=ast.Constant(value=int() | float() as a), right=ast.Constant(value=b)):
            return a - b if isinstance(b, int | float) else UNKNOWN
    return UNKNOWN
