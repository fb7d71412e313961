"""WikiText in whole articles, as lm-eval scores it: raw pages in, readable text out. Merity et al., arXiv:1609.07843.

The replacements are those of lm-eval's task `wikitext` (version 2), in its order, odd ones included: the number
depends on every one of them.
https://github.com/EleutherAI/lm-evaluation-harness/blob/main/lm_eval/tasks/wikitext/preprocess_wikitext.py
"""

import re
from typing import ClassVar

from pipeline.tasks.base import Row, Task

Replacement = tuple[str | re.Pattern[str], str]

REPLACEMENTS: tuple[Replacement, ...] = (
    ("s '", "s'"),
    (re.compile(r"/' [0-9]/"), "/'[0-9]/"),  # a sed expression that lost its way; it is part of the protocol
    *((f" @{mark}@ ", mark) for mark in "-,."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
    (re.compile(r"\(\s*([^\)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


class Articles(Task):
    """Articles of WikiText: what is read is detokenized, what is counted is the page as it was."""

    example: ClassVar[Row] = {"page": " = Robert Boulter = \n \n He starred in Herons , performed in 2001 . \n"}
    hidden: ClassVar[str | None] = None

    def prompt(self, row: Row) -> str:
        return ""

    def answer(self, row: Row) -> str:
        return detokenized(row["page"])

    def reference(self, row: Row) -> str:
        return row["page"]


def detokenized(page: str) -> str:
    """Return a page as it would be printed."""
    for old, new in REPLACEMENTS:
        page = page.replace(old, new) if isinstance(old, str) else old.sub(new, page)
    return page


def articles(text: str) -> list[str]:
    """Cut WikiText's file into its articles: each begins at a heading of the first level, ` = Title = `."""
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        flat = line.replace("= = =", "===").replace("= =", "==").strip()
        if flat.startswith("= ") and flat.endswith(" ="):
            found.append([])
        found[-1].append(line)
    pages = ["\n".join(lines) for lines in found]
    return [page for page in pages if page.strip()]
