# SPDX-License-Identifier: Apache-2.0
"""Who imports whom, against the table in ARCHITECTURE.md."""

import ast
import re
from pathlib import Path

import pytest

import evenkeel

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "evenkeel"
FOREIGN = {
    "flax",
    "h5py",
    "jax",
    "keras",
    "matplotlib",
    "numpy",
    "rich",
    "safetensors",
    "sklearn",
    "tensorflow",
    "tf_keras",
    "torch",
    "typer",
}


FORMATS = "evenkeel.checkpoints.formats."


def table():
    """Room -> (rooms it may import, outside libraries it may import at the top of a module)."""
    rows = {}
    for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            rooms, inside, outside = (re.findall(r"`([\w.]+)`", cell) for cell in cells)
            for room in rooms:
                rows[room] = (set(inside), set(outside))
    return rows


TABLE = table()


def room_of(module):
    """The room of a dotted module name, such as `backends.torch` or `functional`; "" for the package itself."""
    parts = module.split(".")[1:]
    if parts and parts[0] in evenkeel.__all__:
        return room_of(f"evenkeel.{evenkeel._HOME[parts[0]]}")
    if parts and parts[0] in ("__init__", "__main__"):
        return ""
    return next((name for size in (2, 1) if (name := ".".join(parts[:size])) in TABLE), ".".join(parts[:1]))


def imports(tree, level=None):
    """Full names of imported modules; with `level="top"` only those outside functions and TYPE_CHECKING."""
    nodes = ast.walk(tree)
    if level == "top":
        nodes = tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{item.name}" for item in node.names)


def violations(module, source):
    tree = ast.parse(source)
    room = room_of(module)
    inside, outside = TABLE.get(room, (set(), set()))
    found = []
    for name in imports(tree):
        if name == "evenkeel" or name.startswith("evenkeel."):
            target = room_of(name)
            # One array library knows nothing of the others; any other room that may import a room may import its parts.
            parts = {target} if room.startswith("backends.") else {target, target.split(".")[0]}
            if room and not parts & (inside | {"", room}):
                found.append(f"{module} imports {name}")
            elif room == target == "cli" and module.split(".")[2] not in ("__init__", name.split(".")[2]):
                found.append(f"{module} imports {name}, and verbs never import verbs")
            elif module.startswith(FORMATS) and name.startswith(FORMATS):
                found.append(f"{module} imports {name}, and formats never import formats")
    for name in imports(tree, "top"):
        library = name.split(".")[0]
        if library in FOREIGN and library not in outside:
            found.append(f"{module} imports {library} at the top")
    return found


MODULES = {
    ".".join(("evenkeel", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in PACKAGE.rglob("*.py")
}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module):
    assert violations(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("evenkeel.functional.moments", "from evenkeel.layers.keras import BatchNormalization"),
        ("evenkeel.functional.moments", "import tensorflow as tf"),
        ("evenkeel.backends.jax.kernels", "from evenkeel.functional import moments"),
        ("evenkeel.backends.jax.kernels", "import torch"),
        ("evenkeel.backends.jax.kernels", "from evenkeel.backends.torch import primitives"),
        ("evenkeel.cli.train", "import keras"),
        ("evenkeel.cli.train", "from evenkeel.cli import bench"),
        ("evenkeel.checkpoints.formats.npz", "from evenkeel.checkpoints.formats import torch"),
        ("evenkeel.functional.moments", "from evenkeel import BatchNormalization"),
        ("evenkeel.errors", "from evenkeel import arguments"),
    ],
)
def test_the_check_itself_can_fail(module, source):
    assert len(violations(module, source)) == 1


def test_every_room_is_in_the_table():
    rooms = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    rooms -= {"__init__", "__main__", "__pycache__"}
    assert rooms <= set(TABLE)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_public_names_of_other_libraries(module):
    private = ("keras.src", "tensorflow.python", "tf_keras.src", "torch._", "jax._src", "jax.interpreters")
    assert [name for name in imports(ast.parse(MODULES[module].read_text())) if name.startswith(private)] == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_says_its_licence_and_its_question(module):
    source = MODULES[module].read_text()
    assert source.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert (MODULES[module].parent.parent.name == "backends" and source.count("\n") == 1) or ast.get_docstring(
        ast.parse(source)
    )
