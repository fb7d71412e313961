"""Scores what an evaluation kept, by every rule of its task. No model, no network, seconds."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.core.settings import SettingsError
from pipeline.tasks.base import Rule
from pipeline.tasks.generation import TOO_LONG

Item = dict[str, Any]


def scores(rules: Iterable[Rule], items: Mapping[str, list[Item]], references: Mapping[str, str]) -> dict[str, Any]:
    """Return, for every rule and state, the score and each item's number.

    Args:
        rules: scoring rules.
        items: items of each state, all in one order.
        references: what each item is compared with; chunks of joined texts are compared with nothing.

    Raises:
        SettingsError: an item that must be compared with a reference has none; the message names it.
    """
    return {
        rule.id: {
            "unit": rule.unit,
            "better": rule.better,
            "aggregate": rule.aggregate,
            "states": {state: _scored(rule, rows, references) for state, rows in items.items()},
        }
        for rule in rules
    }


def _scored(rule: Rule, items: list[Item], references: Mapping[str, str]) -> dict[str, Any]:
    pairs = [(item, _reference(rule, item["item"], references)) for item in items]
    values = [rule.value(*pair) for pair in pairs]
    weights = [rule.weight(*pair) for pair in pairs]
    # An item's weight goes into its number, so that whoever resamples items takes plain means.
    even = math.fsum(weights) / len(weights)
    per_item = [0.0 if value is None else value * weight / even for value, weight in zip(values, weights, strict=True)]
    mean = math.fsum(per_item) / len(per_item)
    return {
        "score": math.exp(mean) if rule.aggregate == "exp-mean" else mean,
        "n": len(items),
        "per_item": per_item,
        "failures": values.count(None),
        "truncated": sum(item.get("stop") == "length" for item in items),
        "too_long": sum(item.get("stop") == TOO_LONG for item in items),
    }


def _reference(rule: Rule, name: str, references: Mapping[str, str]) -> str:
    """Return what an item is compared with: one that has nothing would score 0 whatever the model said."""
    reference = references.get(name, "")
    if rule.compares and not reference.strip():
        raise SettingsError(
            f"{rule.id}: item {name!r} has no reference to be compared with. Fill in its answer in the data, or "
            "remove the row."
        )
    return reference
