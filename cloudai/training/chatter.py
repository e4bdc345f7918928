"""What Ray's own processes would write into a run's log again and again. Light: it runs at each one's start."""

from __future__ import annotations

import logging

__all__ = ["HUSH", "hush"]

HUSH = "cloudai.training.chatter.hush"
"""Where Ray finds it (``worker_process_setup_hook``)."""


def hush() -> None:
    """Silence a warning of Ray Train that comes each second where a cluster has no dashboard, as one of this machine."""
    logging.getLogger("ray.train.v2._internal.execution.controller.placement_group_cleaner").setLevel(logging.ERROR)
