"""Errors by the number of chunks, and the record, tables and plots of the linear loss."""

from __future__ import annotations

import pytest
import torch

from benchmarks import linear_error, linear_loss, plots, record_tables


@pytest.fixture(scope="module")
def errors():
    return linear_error.measure()


@pytest.mark.parametrize("quantity", linear_error.QUANTITIES)
def test_errors_do_not_grow_with_the_number_of_chunks(errors, quantity):
    """Liger-Kernel #512, #827, #830, #1391, and torch 2.13: d/dweight and the loss were added up in bfloat16."""
    by = {(point["contestant"], point["chunks"]): point[quantity] for point in errors}
    unfused = by[linear_error.UNFUSED, 1]
    for chunks in linear_error.CHUNKS:
        assert by[linear_error.OURS, chunks] <= 1.5 * unfused, chunks
    assert len(by) == 3 * len(linear_error.CHUNKS)


def test_the_measurement_sees_an_error_that_grows(errors):
    """That of a weight's gradient which is summed over the chunks in bfloat16."""
    x, w, y = linear_error.make_inputs(torch.bfloat16)
    exact = linear_error.loss_and_gradients(linear_error.unfused, x.double(), w.double(), y)
    summed = torch.zeros_like(w)
    for first in range(0, len(x), 2):
        part = linear_error.ours_in_chunks(x[first : first + 2], w, y[first : first + 2], 2)
        summed += part[2] / (len(x) // 2)
    narrow = linear_error.relative_errors((exact[0], exact[1], summed), exact)["weight"]
    ours = max(p["weight"] for p in errors if p["contestant"] == linear_error.OURS)
    assert narrow > 3 * ours


def _case(dtype="float32"):
    spread = {"median": 1.0, "low": 0.9, "high": 1.1}
    ratios = {
        measure: {
            linear_loss.LIMIT: spread,
            **{p: spread for p, of in linear_loss.PEER_MEASURES.items() if measure in of},
        }
        for measure in linear_loss.LIMITS
    }
    seconds = {
        f"{who}, {measure}": spread for who in (linear_loss.OURS, linear_loss.LIMIT) for measure in linear_loss.LIMITS
    }
    memory = [{"rows": 2048, "workspace_bytes": 128_000_000, "beside_bytes": 145_000_000}]
    shape = linear_loss.SHAPES["gpt2"]
    return {
        "shape": "gpt2",
        "size": list(shape.size),
        "dtype": dtype,
        "ratios": ratios,
        "seconds": seconds,
        "memory": memory,
    }


def test_bars_compare_with_what_is_required():
    case = _case()
    met = {(bar["measure"], bar["against"]): bar["met"] for bar in linear_loss.judge(case)}
    assert met["forward_backward", linear_loss.LIMIT]
    assert not met["forward_backward", linear_loss.UNFUSED]
    assert not met["memory", "workspace + 16 MB, 2048 rows"]
    assert met["forward_backward", linear_loss.DEFERRED]
    assert len(met) == 7


def test_every_implementation_computes_the_same_loss_and_gradients():
    x, w, y = linear_loss.make_inputs(linear_loss.LinearShape("tiny", 12, 8, 50), "float32")
    calls = linear_loss.losses()
    assert set(calls) == {linear_loss.OURS, *linear_loss.PEER_MEASURES}
    expected = torch.nn.functional.cross_entropy(x.double() @ w.double().T, y)
    gradients = torch.autograd.grad(expected, (x, w))
    for loss in calls.values():
        value = loss(x, w, y)
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
        for gradient, exact in zip(torch.autograd.grad(value, (x, w)), gradients, strict=True):
            torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-7)


def test_tables_and_plot_are_made_from_the_record(errors):
    case = _case()
    record = {"cases": [{**case, "bars": linear_loss.judge(case)}], "errors": errors}
    assert "gpt2 2048 x 768 x 50257 | float32 | forward + backward | 1000" in record_tables.linear(record)
    assert "at most 144.0 MB | 145.0 MB | no" in record_tables.linear_bars(record)
    drawn = plots.linear_error_svg(record)
    assert drawn.startswith(plots.made_from(record))
    assert "gradient of the weight" in drawn
