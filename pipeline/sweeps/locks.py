"""Takes away the locks that a killed Snakemake has left, which every later start would stumble over."""

import fcntl
import platform
from pathlib import Path
from typing import TextIO


def living(snakemake: Path = Path(".snakemake")) -> TextIO:
    """Remove Snakemake's locks if nobody who could hold them lives; return what must stay open as long as we do.

    Each Snakemake of ours shares a file lock, which its death releases however it comes. Locks of another host are left
    alone, for file locks do not reach it on every file system.
    """
    snakemake.mkdir(exist_ok=True)
    mine = (snakemake / "living").open("a+", encoding="utf-8")
    try:
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # others live
    else:
        mine.seek(0)
        if mine.read() == platform.node():
            for lock in (snakemake / "locks").glob("*.lock"):
                lock.unlink()
        mine.truncate(0)
        mine.write(platform.node())
        mine.flush()
    fcntl.flock(mine, fcntl.LOCK_SH)
    return mine
