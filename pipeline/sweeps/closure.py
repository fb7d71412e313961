"""Which code does a stage really run? Its module, the classes its slice names, and all of `pipeline` they import.

The digest covers the syntax trees without docstrings: comments, blank lines and formatting do not count, a changed
constant does. Every Python reads one tree from one text. Imports under `if TYPE_CHECKING:` load nothing and do not
count; relative ones are refused.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.core.records import write_atomic
from pipeline.core.settings import TARGET, SettingsError

PACKAGE = Path(__file__).resolve().parents[1]
DATA = (".html", ".css", ".js")
"""What a module may have beside it, under its own name, and counts as part of it."""
REMEMBERED = 500
NAMED = re.compile(rf'"{TARGET}":"([\w.]+)\.\w+"')


@dataclass(frozen=True)
class Module:
    """One parsed module of this package."""

    name: str
    digest: str
    imports: frozenset[str]


def code(stage: str, cfg: str) -> str:
    """Return `code:<hex>`, the digest of all code of this package that `stage` loads when given the settings `cfg`."""
    return _code(frozenset({f"pipeline.stages.{stage}", *targets(cfg)}))


def targets(cfg: str) -> list[str]:
    """Return the modules of all classes that canonical settings name by `_target_`, at any depth."""
    return NAMED.findall(cfg)


@cache
def _code(roots: frozenset[str]) -> str:
    found = modules(roots)
    name = "code:" + digest(found)
    _seen[name] = {module.name: module.digest[:12] for module in found}
    return name


_seen: dict[str, dict[str, str]] = {}


class Ledger:
    """Remembers in one file which modules each digest stood for, so that a change can be named."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, dict[str, str]] = {}
        with suppress(FileNotFoundError, ValueError):  # only a memory: begun anew where it is damaged
            self._known = json.loads(file.read_bytes())

    def save(self) -> None:
        """Add the digests of this process, and keep the newest."""
        if _seen.keys() - self._known.keys():
            newest = list((self._known | _seen).items())[-REMEMBERED:]
            write_atomic(self._file, json.dumps(dict(newest)).encode())

    def changed(self, old: str, new: str) -> list[str]:
        """Return the modules that differ between two digests; none where the old one is not remembered."""
        before, after = self._known.get(old, {}), _seen.get(new, {})
        return sorted(name for name in before | after if before.get(name) != after.get(name)) if before else []


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
    try:
        imports = frozenset(_imports(tree))
    except SettingsError as error:
        raise SettingsError(f"{file}: {error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = _without_docstring(node.body)
    text = hashlib.sha256(written(tree).encode())
    for beside in (file.with_suffix(suffix) for suffix in DATA):
        text.update(beside.read_bytes() if beside.is_file() else b"")
    return Module(name, text.hexdigest(), imports)


def written(tree: object) -> str:
    """Return the text of a syntax tree without its empty fields, of which each Python has others."""
    if isinstance(tree, ast.AST):
        fields = ((name, getattr(tree, name, None)) for name in tree._fields)
        told = ",".join(f"{name}={written(value)}" for name, value in fields if value is not None and value != [])
        return f"{type(tree).__name__}({told})"
    return f"[{','.join(map(written, tree))}]" if isinstance(tree, list) else repr(tree)


def _imports(tree: ast.AST) -> Iterable[str]:
    """Yield every name that `tree` may import; a name from a module may be a module itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise SettingsError(
                    f"line {node.lineno}: imports here are absolute: 'from {__name__.split('.')[0]}.…'."
                )
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
