"""Which code does a stage really run? Its module, the classes its slice names, and all of `pipeline` they import.

The digest covers the syntax trees without docstrings: comments, blank lines and formatting do not count, a changed
constant does. Imports under `if TYPE_CHECKING:` load nothing and do not count.
"""

import ast
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.core.settings import TARGET

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Module:
    """One parsed module of this package."""

    name: str
    digest: str
    imports: frozenset[str]


def code(stage: str, settings: object) -> str:
    """Return `code:<hex>`, the digest of all code of this package that `stage` loads when given `settings`."""
    return _code(frozenset({f"pipeline.stages.{stage}", *targets(settings)}))


def targets(settings: object) -> set[str]:
    """Return the modules of all classes that `settings` names by `_target_`, at any depth."""
    if isinstance(settings, Mapping):
        inner = set().union(*(targets(value) for value in settings.values())) if settings else set()
        target = settings.get(TARGET)
        return inner | ({target.rpartition(".")[0]} if isinstance(target, str) else set())
    if isinstance(settings, list | tuple):
        return set().union(*(targets(value) for value in settings)) if settings else set()
    return set()


@cache
def _code(roots: frozenset[str]) -> str:
    return "code:" + digest(modules(roots))


def digest(found: Iterable[Module]) -> str:
    """Return 12 hex digits over the names and digests of `found`."""
    text = "\n".join(f"{module.name} {module.digest}" for module in found)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def modules(roots: Iterable[str]) -> list[Module]:
    """Return the import closure of `roots` inside this package, parents included, sorted by name."""
    found: dict[str, Module] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in found and (file := _file(name)) is not None:
            found[name] = _parse(name, file)
            waiting += [*found[name].imports, name.rpartition(".")[0]]
    return [found[name] for name in sorted(found)]


@cache
def _file(name: str) -> Path | None:
    """Return the file of module `name`, or None where it is no module of this package."""
    if name.partition(".")[0] != PACKAGE.name:
        return None
    path = PACKAGE.parent.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def _parse(name: str, file: Path) -> Module:
    tree = ast.parse(file.read_bytes(), filename=str(file))
    imports = frozenset(_imports(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = _without_docstring(node.body)
    return Module(name, hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports)


def _imports(tree: ast.AST) -> Iterable[str]:
    """Yield every name that `tree` may import; a name from a module may be a module itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(ast.Module(body=node.orelse, type_ignores=[]))
        else:
            yield from _imports(node)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    """Return `body` without the bare strings in it: the docstring, and the notes below fields."""
    return [
        statement
        for statement in body
        if not (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        )
    ]


def named(settings: Mapping[str, Any]) -> list[Module]:
    """Return the import closure of the classes alone that `settings` names."""
    return modules(targets(settings))
