"""Where and when something was made: the part of a record that may differ between two equal runs."""

import platform
import subprocess
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "datasets",
    "rouge-score",
    "bitsandbytes",
    "peft",
    "snakemake",
    "hydra-core",
)


def about(started: float, **extra: Any) -> dict[str, Any]:
    """Return time, seconds since `started` (of time.time()), host, commit, versions, and whatever `extra` adds."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 3),
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
        "versions": {"python": platform.python_version(), **_versions()},
    } | extra


@cache
def commit() -> str | None:
    """Return the commit of the code that runs, with `+` if the working tree differs; None outside a repository."""
    root = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def device_name(device: str) -> str:
    """Return what `device` is called: the GPU's name, or the processor's architecture."""
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None:
        return str(torch.cuda.get_device_name(device))
    return f"CPU {platform.machine()}"


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
