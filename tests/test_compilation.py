"""How kernels are compiled: what is entered from Python becomes machine code, once, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
from numba.core.codegen import JITCodeLibrary

from xent.backends.cpu.compilation import device, kernel, routine
from xent.backends.cpu.team import row_kernel


@device
def _twice(x):
    return x + x


@routine
def _doubled(row):
    for i in range(len(row)):
        row[i] = _twice(row[i])


@kernel
def double_row(row):
    _doubled(row)


@row_kernel
def double_rows(rows, first, last):
    for r in range(first, last):
        if rows[r, 0] < 0:
            raise ValueError("below zero")
        _doubled(rows[r])


@pytest.fixture
def translated(monkeypatch, tmp_path):
    """The names of what is translated to machine code from now on, with an empty kernel cache."""
    names = []
    translate = JITCodeLibrary._finalize_specific

    def note(library):
        names.append(library.name)
        translate(library)

    monkeypatch.setattr(JITCodeLibrary, "_finalize_specific", note)
    for compiled in (double_row, double_rows):
        monkeypatch.setattr(compiled._cache.files, "folder", tmp_path)
    return names


def test_what_only_compiled_code_calls_is_translated_with_its_caller(translated):
    row = np.arange(6.0)
    double_row(row)
    assert row.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    work, rows = np.zeros(1, np.int64), np.ones((5, 3))
    double_rows(0, 1, work, 5, 2, (rows,))
    assert (rows == 2.0).all()
    assert translated.count("double_row") == 1
    assert translated.count("_shared_in_compiled_code.<locals>.share") == 1
    linked = ("_twice", "_doubled", "double_rows", "take_part")
    assert not [name for name in translated if name.endswith(linked)]


def test_errors_come_out_of_what_is_translated_with_its_caller():
    rows = np.array([[1.0], [-1.0]])
    with pytest.raises(ValueError, match="below zero"):
        double_rows(0, 1, np.zeros(1, np.int64), 2, 1, (rows,))
    assert rows.tolist() == [[2.0], [-1.0]]
