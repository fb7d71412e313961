"""The files of the house, for tests that read all of them."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("conf", "pipeline", "rules", "profiles", "snakemake_logger_plugin_sweep", "tests", "docs", ".ci")


def files(*patterns: str, under: tuple[str, ...] = FOLDERS) -> list[Path]:
    """Files below the named folders that match one of the patterns; never none."""
    found = sorted(
        path
        for folder in under
        for pattern in patterns
        for path in (ROOT / folder).rglob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    )
    assert found, f"no {' or '.join(patterns)} below {', '.join(under)}: this test would test nothing"
    return found


def texts() -> list[Path]:
    """Every text file of the repository that a person wrote."""
    top = [
        path for path in ROOT.iterdir() if path.is_file() and path.name not in ("LICENSE", "constraints.txt", ".git")
    ]
    return files("*.py", "*.yaml", "*.smk", "*.md", "*.rst", "*.html", "*.css", "*.js", "run") + sorted(top)


def pyproject() -> dict:
    """The parsed pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
