"""Which module may import which: the table of layers in docs/design.md, held against every import of the package."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import xent

SOURCE = Path(xent.__file__).parent
DESIGN = Path(__file__).parents[1] / "docs" / "design.md"
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")
LAZY = {"__version__", "XentError", "Objective", "score", "compare"}  # names that `xent` itself shows


def layers() -> list[set[str]]:
    """The rows of the table, from the ground upwards."""
    section = DESIGN.read_text().split("## Layers")[1].split("\n## ")[0]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("|")][2:]
    return [set(re.findall(r"`(\w+)`", row)) for row in reversed(rows)]


LAYERS = layers()
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}


def imports_of_xent(path: Path) -> set[str]:
    """The modules and names of xent that a file imports anywhere, functions and `if TYPE_CHECKING` included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("xent.") and name.split(".")[1] not in LAZY}


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def modules_imported(path: Path) -> set[str]:
    """The modules of xent that a file needs: the longest prefix of each imported name that is one."""
    found = set()
    for name in imports_of_xent(path):
        parts = name.split(".")
        known = [".".join(parts[:n]) for n in range(len(parts), 1, -1) if ".".join(parts[:n]) in MODULES]
        found |= set(known[:1])
    return found - {module_of(path)}


def test_every_part_of_the_package_has_one_layer():
    assert {part_of(path) for path in FILES} == set(LAYER)
    assert sum(len(names) for names in LAYERS) == len(LAYER), "a module stands in two rows"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_imports_upwards(path):
    own = part_of(path)
    upwards = {name for name in imports_of_xent(path) if LAYER[name.split(".")[1]] > LAYER[own]}
    assert not upwards, f"{own} imports {upwards}, which docs/design.md has above it"


def test_there_are_no_circles():
    """Packages that only pass names on are no part of one: importing a module of theirs runs them first."""
    passing = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    graph = {name: modules_imported(path) - passing for name, path in MODULES.items() if name not in passing}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"modules import each other: {' -> '.join(error.args[1])}") from None


def test_devices_and_fronts_do_not_import_each_other():
    apart = [("numpy", "torch"), ("torch", "numpy"), ("backends.cpu", "backends.gpu"), ("backends.gpu", "backends.cpu")]
    for name, path in MODULES.items():
        for one, other in apart:
            if name.startswith(f"xent.{one}"):
                assert not any(module.startswith(f"xent.{other}") for module in modules_imported(path)), name


def test_the_rule_sees_an_upward_import_and_a_circle(tmp_path):
    """The parser itself: an import inside a function is an import."""
    file = tmp_path / "objective.py"
    file.write_text("def f():\n    from xent.torch import functional\n    import xent.why.data\n    import xent\n")
    assert imports_of_xent(file) == {"xent.torch.functional", "xent.why.data"}
    with pytest.raises(CycleError):
        tuple(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())


def test_no_two_files_of_a_folder_differ_by_an_ending():
    """`batch` and `batches`, `compiler` and `compilation`: nobody knows which is which."""
    for folder in {path.parent for path in FILES}:
        names = sorted(path.stem for path in folder.glob("*.py"))
        for first, second in pairwise(names):
            stem = first[: max(len(first) - 2, 4)]
            assert not (second.startswith(stem) and len(first) >= 5 and "_" not in second[len(stem) :]), (first, second)


def test_no_name_of_a_file_occurs_in_four_folders():
    counts: dict[str, int] = {}
    for path in FILES:
        counts[path.stem] = counts.get(path.stem, 0) + (path.stem != "__init__")
    assert max(counts.values()) < 4, {name: count for name, count in counts.items() if count >= 4}


def test_private_names_of_torch_are_in_one_module():
    """`torch._C`, `tensor._version` and the like change without notice; each has its reason in _torch_private.py."""
    private = {"_version", "_cdata", "_make_wrapper_subclass"}
    for path in FILES:
        if path.name == "_torch_private.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                name = ast.unparse(node)
                is_private = re.match(r"torch\._[^_]", name) or node.attr in private
                assert not is_private, f"{path}: {name}"
