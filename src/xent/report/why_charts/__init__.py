"""The charts of `xent why`, one module for each part of the report: Vega-Lite specifications made by Altair."""

from __future__ import annotations

from typing import Any

from altair.utils.schemapi import debug_mode

from xent.report.theme import Layers
from xent.report.why_charts import information, likelihood, punishment, race

__all__ = ["charts"]


def charts(record: dict[str, Any]) -> dict[str, Layers]:
    """Return all charts by their names in the template. The record is that of `Record.to_dict`."""
    # Checking each part against the schema as it is made takes a third of the time. The tests check the whole.
    with debug_mode(False):
        return {
            name: chart
            for part in (punishment, information, likelihood, race)
            for name, chart in part.charts(record).items()
        }
