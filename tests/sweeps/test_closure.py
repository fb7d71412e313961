"""The digest of a stage's code: all that it imports, and nothing that cannot change a result."""

import ast
from hashlib import sha256

import pytest

from pipeline.core.settings import SettingsError, canonical
from pipeline.sweeps import closure


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of four modules; answer a function that writes one and gives the digest of `pipeline.a`."""
    root = tmp_path / "pipeline"
    root.mkdir()
    monkeypatch.setattr(closure, "PACKAGE", root)
    files = {
        "__init__": '"""Package."""',
        "a": '"""A."""\nfrom pipeline.b import f\n\ndef g():\n    """Do."""\n    return f(1)\n',
        "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipeline.c import C\nK = 1\n",
        "c": "class C: ...\n",
        "d": "D = 1\n",
    }
    for name, text in files.items():
        (root / f"{name}.py").write_text(text)

    def forget():
        closure._file.cache_clear()
        closure._parse.cache_clear()

    def digest(name="a", text=None):
        if text is not None:
            (root / f"{name}.py").write_text(text)
        forget()
        return closure.digest(closure.modules(["pipeline.a"]))

    digest.files = files
    yield digest
    forget()


def test_closure(package):
    package()
    assert [module.name for module in closure.modules(["pipeline.a"])] == ["pipeline", "pipeline.a", "pipeline.b"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a", '"""Other."""\n# why\nfrom pipeline.b import f\n\n\ndef g():\n    """Say."""\n    return f( 1 )\n'),
        ("c", "class C:\n    x = 2\n"),
        ("d", "D = 2\n"),
    ],
)
def test_what_does_not_count(package, name, text):
    before = package()
    assert package(name, text) == before


@pytest.mark.parametrize(("name", "old", "new"), [("a", "f(1)", "f(2)"), ("b", "K = 1", "K = 2"), ("a", "g()", "h()")])
def test_what_counts(package, name, old, new):
    before = package()
    assert package(name, package.files[name].replace(old, new)) != before


def test_lazy_and_submodule_imports_count(package):
    package("b", "def late():\n    from pipeline import d\n    return d\n")
    assert "pipeline.d" in [module.name for module in closure.modules(["pipeline.a"])]


def test_targets_at_any_depth():
    settings = {
        "x": [{"_target_": "pipeline.a.b.C"}],
        "y": {"_target_": "pipeline.d.E", "z": {"_target_": "pipeline.f.G"}},
    }
    assert set(closure.targets(canonical(settings))) == {"pipeline.a.b", "pipeline.d", "pipeline.f"}


def test_a_change_is_named(tmp_path, package):
    package("a", "A = 1\n")
    closure._code.cache_clear()
    old = closure._code(frozenset({"pipeline.a", "pipeline.d"}))
    closure.Ledger(tmp_path / "code.json").save()
    package("d", "D = 2\n")
    closure._code.cache_clear()
    new = closure._code(frozenset({"pipeline.a", "pipeline.d"}))
    closure._code.cache_clear()
    assert closure.Ledger(tmp_path / "code.json").changed(old, new) == ["pipeline.d"]
    assert closure.Ledger(tmp_path / "nothing.json").changed(old, new) == []


def test_a_relative_import_is_refused_since_nobody_would_follow_it(package):
    with pytest.raises(SettingsError, match=r"b\.py: line 1: imports here are absolute"):
        package("b", "from .d import D\n")
    with pytest.raises(SettingsError, match=r"line 1: imports here are absolute"):
        package("b", "from . import d\n")


def test_every_python_reads_one_text_as_one_tree():
    """3.12 gives functions type parameters, 3.13 drops empty lists from dumps: the digests must not see it."""
    text = "@f\nclass A(B, c=1):\n    x: int = 3\n\n"
    text += "    async def f(self, *a, b=None, **k) -> str:\n        return f'{a!r:>3}{{}}'\n"
    assert sha256(closure.written(ast.parse(text)).encode()).hexdigest()[:16] == "30030dc00f3322aa"


def test_templates_beside_a_module_count(package):
    before = package()
    (closure.PACKAGE / "b.html").write_text("<p>")
    assert package() != before
