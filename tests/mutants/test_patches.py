"""The patches of `make mutants` fit today's code and name tests that are there; `make mutants` itself takes minutes."""

import re

import pytest

from tests.mutants import run

ASKED = {
    "lora-scale-dropped", "lora-b-random", "oft-merge-inverse", "neumann-one-term-short", "dylora-no-rescale",
    "dylora-rank-per-layer", "ia3-merge-without-bias", "adalora-budget-off-by-one", "nf4-nibbles-swapped",
    "nested-offset-dropped", "masked-rows-moved-by-momentum", "adamix-same-experts",
}  # fmt: skip
"""Each a defect that a library or a port of the method has had."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return run.copy_into(tmp_path_factory.mktemp("copy"))


def test_the_defects_that_others_have_had_are_there():
    assert {patch.stem for patch in run.PATCHES} >= ASKED


@pytest.mark.parametrize("patch", run.PATCHES, ids=lambda patch: patch.stem)
def test_a_patch_applies_and_names_tests(copy, patch):
    run.apply(patch, copy, "--check")
    assert re.match(r"[A-Z].*\.\n\n", patch.read_text()), "the first line says what it breaks"
    for test in run.tests_of(patch):
        assert (run.ROOT / test.partition("::")[0]).is_file()


def test_a_patch_that_no_longer_applies_is_an_error(copy, tmp_path):
    old = tmp_path / "old.patch"
    old.write_text(run.PATCHES[0].read_text().replace("\n-", "\n-no longer there "))
    with pytest.raises(run.MutantError, match=r"old\.patch: no longer applies"):
        run.apply(old, copy, "--check")


@pytest.mark.parametrize(("line", "message"), [("", "names no test"), ("Test: tests/core/test_seeds.py\n", "survives")])
def test_a_defect_that_nobody_is_to_see_or_sees_is_an_error(tmp_path, line, message):
    blind = tmp_path / "blind.patch"
    diff = run.PATCHES[0].read_text().partition("diff --git")
    blind.write_text(f"What it breaks.\n\n{line}\n{diff[1]}{diff[2]}")
    with pytest.raises(run.MutantError, match=message):
        run.seen_by(blind)
