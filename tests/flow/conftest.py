"""What several of these tests share."""

from tests.postgres import postgres  # noqa: F401
