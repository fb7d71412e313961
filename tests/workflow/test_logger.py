"""What the log says of a failed job."""

from collections import namedtuple
from types import SimpleNamespace

import pytest

import snakemake_logger_plugin_sweep as logger


@pytest.mark.parametrize("free", [0, 10**12])
def test_a_full_disk_is_said_even_if_the_job_s_own_log_found_no_room(free, tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(logger.shutil, "disk_usage", lambda path: usage(free))
    log = tmp_path / "finetune.log"
    log.touch()
    handler = object.__new__(logger.LogHandler)
    handler._failed, handler._jobs = {}, {7: {"rule": "finetune", "wildcards": ("run-x",), "log": [str(log)]}}
    handler._job_error(SimpleNamespace(jobid=7, rule_name="finetune", shellcmd="python -m pipeline finetune"))
    said = capsys.readouterr().err
    assert "FAILED finetune run-x" in said
    assert ("the disk is full: 0 bytes are free" in said) == (free == 0)
