"""What several of these tests share."""

from tests.disks import disk  # noqa: F401
from tests.postgres import postgres  # noqa: F401
