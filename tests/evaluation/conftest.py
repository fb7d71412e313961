"""The prepared tiny models of tests/models."""

from tests.models.conftest import prepared  # noqa: F401
