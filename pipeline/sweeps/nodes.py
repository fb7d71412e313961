"""Plain nodes of settings: looking into them, and setting single keys."""

import copy
from collections.abc import Mapping
from typing import Any

from pipeline.core.settings import SettingsError

Node = dict[str, Any]


def has(node: Mapping[str, Any], path: list[str]) -> bool:
    """Say whether `node` holds a value at `path`."""
    for part in path:
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def put(node: Node, path: list[str], value: object, key: str) -> Node:
    """Return `node` with `value` at `path`, sharing all that did not change. `key` is what the user wrote."""
    if not path:
        raise SettingsError(f"{key}: is a group of settings, got {value!r}. Name one of them: {key}.<setting>=...")
    head, *rest = path
    if not rest:
        return node | {head: copy.deepcopy(value)}
    inner = node.get(head, {})  # a wrong key is for its class to refuse
    if not isinstance(inner, dict):
        raise SettingsError(f"{key}: {key.removesuffix('.' + '.'.join(rest))} is one value, {inner!r}, without parts.")
    return node | {head: put(inner, rest, value, key)}


def flat(node: Mapping[str, Any], prefix: str = "") -> Node:
    """Return `node` as one level: dotted key -> value."""
    found: Node = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found
