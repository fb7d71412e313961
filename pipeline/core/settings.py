"""Turns one node of settings into one typed, frozen object, or says exactly which key is wrong.

Settings travel between processes as plain JSON. A node that carries `_target_` names its own class; the dynamic
import that this needs happens here and nowhere else, so that the code a run depends on can be read off its settings.
"""

import difflib
import hashlib
import importlib
import json
from collections.abc import Mapping
from types import ModuleType
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

TARGET = "_target_"
COSTS = ("checkpoint_every", "budget_bytes")
"""Settings, wherever they stand, that say when or where something is kept, and change no bit of any result."""


class SettingsError(ValueError):
    """A setting is wrong. The message is for the user: the key, what was got, what is allowed, what to do."""


class Settings(BaseModel):
    """Base of every settings class: frozen, unknown keys refused, types not coerced from strings."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    def node(self) -> dict[str, Any]:
        """Return the plain JSON node that `build` turns back into this object."""
        fields = type(self).model_fields
        nested = {key: _node(value) for key, value in self if _names_its_class(fields[key])}
        return {TARGET: f"{type(self).__module__}.{type(self).__qualname__}"} | self.model_dump(mode="json") | nested


S = TypeVar("S", bound=Settings)


def canonical(value: object) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: object, length: int = 8) -> str:
    """Return the first `length` hex digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def deciding(node: Any) -> Any:
    """Return `node` without the settings that no digest counts, at any depth."""
    if isinstance(node, Mapping):
        return {key: deciding(value) for key, value in node.items() if key not in COSTS}
    return [deciding(value) for value in node] if isinstance(node, list | tuple) else node


def nearest(word: str, known: list[str]) -> str:
    """Return ` Did you mean ...?` for the nearest of `known`, or nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found and found[0] != word else ""


def parse(cls: type[S], node: Mapping[str, Any], where: str = "") -> S:
    """Check `node` against `cls`. `where` is the dotted place of the node, for messages.

    Raises:
        SettingsError: one line per wrong key.
    """
    try:
        return cls.model_validate_json(json.dumps({k: v for k, v in node.items() if k != TARGET}), strict=True)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(cls, where, one) for one in error.errors())) from None
    except ValueError as error:
        raise SettingsError(f"{where or cls.__name__}: {error}") from None


def build(node: Mapping[str, Any], where: str = "") -> Settings:
    """Build the settings object that `node["_target_"]` names: `pipeline.<room>.<module>.<Class>`.

    Raises:
        SettingsError: the target is missing, foreign or unknown, or one of its keys is wrong.
    """
    return parse(target_class(node, where), node, where)


def target_class(node: Mapping[str, Any], where: str = "") -> type[Settings]:
    """Import and return the class that `node["_target_"]` names, without building it."""
    target = node.get(TARGET) if isinstance(node, Mapping) else None
    if not isinstance(target, str) or not target.startswith("pipeline."):
        raise SettingsError(
            f"{where + '.' if where else ''}{TARGET}: must name a class of this package ('pipeline.…'), got {target!r}."
        )
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(imported(module_name), name)
    except (ModuleNotFoundError, AttributeError):
        raise SettingsError(f"{where + '.' if where else ''}{TARGET}: there is no class {target!r}.") from None
    if not (isinstance(found, type) and issubclass(found, Settings)):
        raise SettingsError(f"{where + '.' if where else ''}{TARGET}: {target!r} is not a settings class.")
    return found


def imported(module: str) -> ModuleType:
    """Import a module of this package by its name."""
    return importlib.import_module(module)


def _explain(cls: type[Settings], where: str, error: ErrorDetails) -> str:
    """Say one validation error of pydantic as: key, what is wrong, what was got, what is allowed."""
    loc = [str(part) for part in error["loc"]]
    key = ".".join([where, *loc] if where else loc) or cls.__name__
    if error["type"] == "extra_forbidden":
        known = sorted(_fields_at(cls, error["loc"][:-1]))
        return f"{key}: there is no such setting.{nearest(loc[-1], known)} Allowed here: {', '.join(known)}."
    if error["type"] == "missing":
        return f"{key}: a value is needed and none was given."
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, SettingsError):  # a nested node that was built by its own class has said it already
        return "\n".join(f"{key}.{line}" for line in str(cause).splitlines())
    message = error["msg"].removeprefix("Value error, ").removesuffix(".")
    got = "" if isinstance(error["input"], dict) else f", got {error['input']!r}"
    return f"{key}: {message}{got}."


def _fields_at(cls: type[Settings], path: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the settings class that lies at `path` below `cls`."""
    for part in path:
        field = cls.model_fields.get(str(part))
        inner = field.annotation if field else None
        options = [inner, *get_args(inner)] if get_origin(inner) else [inner]
        nested = [option for option in options if isinstance(option, type) and issubclass(option, Settings)]
        if not nested:
            return []
        cls = nested[0]
    return list(cls.model_fields)


def _build_nested(value: object) -> object:
    return build(value) if isinstance(value, Mapping) and TARGET in value else value


BUILT = BeforeValidator(_build_nested)
Built = Annotated[S, BUILT]
"""`Built[Base]`: a field whose node names its own class by `_target_`; the class must derive from `Base`."""


def _names_its_class(field: FieldInfo) -> bool:
    """Say whether a field is `Built[...]`, or a list of such."""
    inner = (getattr(argument, "__metadata__", ()) for argument in get_args(field.annotation))
    return BUILT in field.metadata or any(BUILT in metadata for metadata in inner)


def _node(value: object) -> object:
    """Return the node of a built value, the nodes of a list of them, or None."""
    if isinstance(value, list | tuple):
        return [_node(one) for one in value]
    return value.node() if isinstance(value, Settings) else value
