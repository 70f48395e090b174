"""The bits of losses and gradients: those of the record, and the same in every process, with any number of threads."""

from __future__ import annotations

import functools

import digests
import pytest

SHOWN = 10  # of the keys that differ

computed = functools.cache(digests.computed)


def assert_same(ours, theirs, without=()):
    keys = [key for key in digests.differing(ours, theirs) if not digests.matches(key, without)]
    few = "\n".join(f"  {key}: {theirs.get(key)} -> {ours.get(key)}" for key in keys[:SHOWN])
    assert not keys, f"{len(keys)} of {len(ours)} digests differ, the first of them:\n{few}"


def test_results_are_those_of_the_record():
    """Where this fails on purpose: a line in digests.MENDED, then `python tests/digests.py --record`."""
    found = computed(digests.THREADS)
    record = digests.recorded(found["about"])
    if record is None:
        pytest.skip(f"no record of {digests.key_of(found['about'])}")
    assert_same(found["digests"], record["digests"])


def test_results_repeat_in_another_process_with_another_number_of_threads():
    one, several = computed(1)["digests"], computed(digests.THREADS)["digests"]
    assert_same(one, several, without=digests.DEPENDS_ON_THREADS)


@pytest.mark.parametrize("patterns", [digests.MENDED, digests.DEPENDS_ON_THREADS], ids=["mended", "threads"])
def test_every_pattern_matches_a_result(patterns):
    keys = {key for record in digests.records().values() for key in record["digests"]}
    assert not [pattern for pattern in patterns if not any(digests.matches(key, [pattern]) for key in keys)]
