"""Snakemake's locks go away if, and only if, all that could hold them on this host are dead."""

import pytest

from pipeline.sweeps.locks import living


@pytest.fixture
def snakemake(tmp_path):
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks/0.input.lock").touch()
    return tmp_path


def _locks(snakemake):
    return list((snakemake / "locks").iterdir())


def test_locks_that_were_there_before_all_stay(snakemake):
    living(snakemake).close()
    assert _locks(snakemake)


def test_locks_of_the_dead_go_and_of_the_living_stay(snakemake):
    first = living(snakemake)
    second = living(snakemake)
    first.close()
    third = living(snakemake)
    assert _locks(snakemake)
    second.close()
    third.close()
    living(snakemake).close()
    assert not _locks(snakemake)


def test_locks_of_another_host_stay(snakemake):
    living(snakemake).close()
    (snakemake / "living").write_text("another")
    living(snakemake).close()
    assert _locks(snakemake)
