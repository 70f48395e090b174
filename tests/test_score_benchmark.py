"""The benchmark of scoring: its record is complete, its bars have the right direction, its tables can be made."""

from __future__ import annotations

import json

import pytest

from benchmarks import record_tables, score_speed


@pytest.fixture(scope="module")
def record():
    return score_speed.run_scoring(scale=0.001, command="a test")


@pytest.mark.slow
def test_a_record_has_all_cases_and_survives_json(record):
    assert [(c["kind"], c["rows"], c["classes"]) for c in record["cases"]] == [
        ("parquet", 4000, 10),
        ("csv", 1000, 10),
        ("arrays", 1000, 10),
        ("arrays", 10, 10_000),
    ]
    assert [n["rows"] for n in record["narrow"]] == [10_000, 100_000]
    assert record["cases"][0]["peak_bytes"] > 50e6
    assert json.loads(json.dumps(record, allow_nan=False)) == record


@pytest.mark.slow
def test_tables_are_made_of_every_figure(record):
    text = record_tables.scoring(record)
    for case in record["cases"]:
        for ratio in case["ratios"]:
            assert f"`{ratio['ours']}`" in text
            assert f"{ratio['direction']} {ratio['bar']:g}" in text
    assert "narrow 100,000" in record_tables.scoring_memory(record)


@pytest.mark.parametrize(("ours", "peer", "met"), [(1.0, 0.5, True), (1.0, 0.3, False)])
def test_at_most_bounds_our_time_over_the_peers(ours, peer, met):
    ratio = score_speed._ratio({"a": [ours], "b": [peer]}, "a", "b", "at most", 3.0)
    assert ratio["met"] is met
    assert ratio["median"] == ours / peer


@pytest.mark.parametrize(("ours", "peer", "met"), [(1.0, 12.0, True), (1.0, 9.0, False)])
def test_at_least_bounds_the_peers_time_over_ours(ours, peer, met):
    ratio = score_speed._ratio({"a": [ours], "b": [peer]}, "a", "b", "at least", 10.0)
    assert ratio["met"] is met
    assert ratio["median"] == peer / ours


def test_missed_bars_are_named():
    ratio = score_speed._ratio({"a": [1.0], "b": [9.0]}, "a", "b", "at least", 10.0)
    case = {"kind": "parquet", "rows": 5, "classes": 2, "peak_bytes": 600_000_000, "ratios": [ratio]}
    sentences = score_speed.missed({"cases": [case]})
    assert len(sentences) == 2
    assert "9.00" in sentences[0]
    assert "600 MB" in sentences[1]
    assert score_speed.missed({"cases": [{**case, "peak_bytes": 1, "ratios": [{**ratio, "met": True}]}]}) == []
