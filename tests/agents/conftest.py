"""What several of these tests share."""

from tests.disks import disk  # noqa: F401
