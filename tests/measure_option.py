"""How far an option travels: the functions and files of the package that name it. `python tests/measure_option.py`.

An option that is handed on whole, inside of the `Objective`, is named where it enters, in the definitions, and where a
device turns it into numbers; every other function that names it would have to be changed with it.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import xent

SOURCE = Path(xent.__file__).parent
OPTIONS = ("label_smoothing", "ignore_index", "softcap", "z_loss", "workspace")


def functions_naming(option: str, source: Path = SOURCE) -> list[str]:
    """File and name of every function with the option among its parameters, keywords, attributes or variables."""
    found = []
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and option in _names(node):
                found.append(f"{path.relative_to(source)}:{node.name}")
    return found


def _names(function: ast.FunctionDef) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(function):
        for field in ("arg", "attr", "id"):
            if isinstance(getattr(node, field, None), str):
                names.add(getattr(node, field))
    return names


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE
    for option in OPTIONS:
        functions = functions_naming(option, source)
        files = {name.split(":")[0] for name in functions}
        print(f"{option}: {len(functions)} functions in {len(files)} files")
        for name in functions if "-v" in sys.argv else ():
            print(f"    {name}")


if __name__ == "__main__":
    main()
