"""The README tells the truth about the tree, the commands and the table."""

import re

from tests.house.tree import ROOT

README = (ROOT / "README.md").read_text()
UNTRACKED = {"results"}  # made by the workflow
APART = {"benchmarks", "build"}


def tree() -> set[str]:
    (block,) = re.findall(r"## The house\n\n```\n(.*?)```", README, re.DOTALL)
    entries = [line.split("  ")[0] for line in block.splitlines()]
    return {name.strip("/") for entry in entries for name in entry.split(", ")}


def folders(parent: str) -> set[str]:
    found = {path.relative_to(ROOT) for path in (ROOT / parent).iterdir() if path.is_dir()}
    return {str(path) for path in found if path.name[0] not in "._" and not path.name.endswith(".egg-info")}


def test_everything_in_the_tree_exists():
    assert len(tree()) > 10
    assert {name for name in tree() - UNTRACKED if not (ROOT / name).exists()} == set()


def test_every_room_stands_in_the_tree():
    assert folders(".") | folders("pipeline") <= tree() | APART | {"pipeline"}


def test_every_make_command_is_a_target():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = README + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"(?:^ {4}|`)make ([a-z]+)", pages, re.MULTILINE))
    assert {"sweep", "test", "check"} <= named <= targets


def test_every_link_leads_somewhere():
    for name in ("README.md", "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text())
        assert [link for link in links if not (ROOT / link).exists()] == [], name


def test_table_is_the_one_that_came_out():
    (block,) = re.findall(r"<!-- table: .*? -->\n(.*?)<!-- end of table -->", README, re.DOTALL)
    assert block.strip(), "no table yet: `make sweep readme`"
    made = (ROOT / "docs" / "results" / "default" / "table.md").read_text()
    main = made.split("\n## ")[0].partition("\n")[2]
    assert block.strip() == main.strip(), "stale: `make readme`"
