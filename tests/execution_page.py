"""docs/execution_modes.md, made by running every mode: what works, and what is refused with which remedy.

python tests/execution_page.py --write     runs all of them, which takes a minute or two, and writes the page
python tests/execution_page.py --check     exits with 1 if the page is not what they give
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from execution_cases import CONTRASTIVE, DIVERGENCES, PROBLEMS, Problem
from execution_gaps import NOT_YET, REFUSED, found_in
from execution_modes import MODES, Mode, process_group

from benchmarks.markdown import fill, table
from xent.errors import XentError

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "execution_modes.md"
NOT_YET_CELL = "not yet"
Outcome = Callable[[Mode, Problem], str]
"""Of a mode and a problem: "" for the right answer, NOT_YET_CELL, or the text of an error raised on purpose."""

COLUMNS: dict[str, Callable[[Problem], bool]] = {
    "logits loss": lambda of: of.call == "cross_entropy" and not special(of),
    "statistics": lambda of: of.call == "statistics" and not special(of),
    "linear loss": lambda of: of.call == "linear_cross_entropy" and not special(of),
    "linear statistics": lambda of: of.call == "linear_statistics" and not special(of),
    "soft targets": lambda of: of.case.is_soft and not of.is_binary,
    "options as tensors": lambda of: (
        has_tensor_options(of) and not (of.case.is_soft or of.is_binary or of.call in (*DIVERGENCES, CONTRASTIVE))
    ),
    "binary loss": lambda of: of.is_binary,
    "contrastive loss": lambda of: of.call == CONTRASTIVE,
    "divergences": lambda of: of.call in DIVERGENCES and not of.is_linear,
    "linear divergences": lambda of: of.call in DIVERGENCES and of.is_linear,
}


def has_tensor_options(of: Problem) -> bool:
    return bool(of.case.tensor_options or of.case.learned)


def special(of: Problem) -> bool:
    """Whether a case belongs to a column of its own."""
    return of.case.is_soft or has_tensor_options(of)


def ran(mode: Mode, of: Problem) -> str:
    """What running it gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Your compiler for AOTAutograd")
        warnings.filterwarnings("ignore", message="`torch.jit.script")
        try:
            mode.check(of)
        except XentError as error:
            return str(error).replace(of.call, "call") if found_in(REFUSED, mode, of) else NOT_YET_CELL
        except Exception:
            return NOT_YET_CELL
    return ""


def expected_outcome(mode: Mode, of: Problem) -> str:
    """What test_execution_modes.py holds it to; only errors have to be raised to be read."""
    if found_in(NOT_YET, mode, of):
        return NOT_YET_CELL
    return ran(mode, of) if found_in(REFUSED, mode, of) else ""


def page(outcome: Outcome) -> str:
    """The page with its table made anew."""
    return fill(PAGE.read_text(encoding="utf-8"), ["modes"], lambda _: modes_table(outcome))


def modes_table(outcome: Outcome) -> str:
    """What each mode gives, and the errors."""
    notes: list[str] = []
    rows = []
    for mode in MODES:
        says = mode.says if mode.quick is None else f"{mode.says} Some cases."
        rows.append([mode.name, says, *(cell(mode, holds, outcome, notes) for holds in COLUMNS.values())])
    below = "".join(f"\n\n[{number}] `{note}`" for number, note in enumerate(notes, 1))
    return table(["mode", "how it runs the call", *COLUMNS], rows, left=len(COLUMNS) + 2) + below


def cell(mode: Mode, holds: Callable[[Problem], bool], outcome: Outcome, notes: list[str]) -> str:
    """The word for a mode and a column; errors are added to the notes."""
    runs = [of for of in PROBLEMS if holds(of) and mode.runs(of) and (mode.quick is None or of.case.name in mode.quick)]
    found = [outcome(mode, of) for of in runs]
    if not found:
        return ""
    if NOT_YET_CELL in found:
        return NOT_YET_CELL
    errors = list(dict.fromkeys(text.split("\n")[0] for text in found if text))
    notes += [text for text in errors if text not in notes]
    numbers = ", ".join(str(notes.index(text) + 1) for text in errors)
    return f"error [{numbers}]" if errors else "yes"


def main(arguments: list[str]) -> int:
    with process_group():
        text = page(ran)
    if "--write" in arguments:
        PAGE.write_text(text, encoding="utf-8")
    elif text != PAGE.read_text(encoding="utf-8"):
        print(f"{PAGE.relative_to(ROOT)} is stale: python tests/execution_page.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
