"""The one place that imports bitsandbytes: a reference that we are held to, and a row of the table itself."""

from typing import Any

from pipeline.core.settings import SettingsError


def bitsandbytes(setting: str, instead: str) -> Any:
    """Return the library, which takes a second to import.

    Args:
        setting: what asks for it, for the message.
        instead: what does without it.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import bitsandbytes as library  # noqa: PLC0415
    except ImportError:
        raise SettingsError(
            f"{setting}: this is bitsandbytes' own, which is not installed. Install it "
            f"(pip install -c constraints.txt bitsandbytes), or use {instead}."
        ) from None
    return library
