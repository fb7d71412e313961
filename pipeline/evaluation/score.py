"""Scores what an evaluation kept, by every rule of its task. No model, no network, seconds."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.tasks.base import Rule

Item = dict[str, Any]


def scores(rules: Iterable[Rule], items: Mapping[str, list[Item]], references: Mapping[str, str]) -> dict[str, Any]:
    """Return, for every rule and state, the score and each item's number.

    Args:
        rules: scoring rules.
        items: items of each state, all in one order.
        references: what each item is compared with; items without one (chunks of text) are compared with nothing.
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
    pairs = [(item, references.get(item["item"], "")) for item in items]
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
    }
