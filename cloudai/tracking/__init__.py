"""Experiment tracking behind a small protocol: MLflow, Weights & Biases, and whatever a package of its own adds.

What a run reports is in its folder in the store first; a tracker hears of it afterwards, and may hear it again.
"""

from cloudai.tracking.protocol import Row, TrackedModel, TrackedRun, Tracker
from cloudai.tracking.registry import check_address, parse_address, tracker_for

__all__ = ["Row", "TrackedModel", "TrackedRun", "Tracker", "check_address", "parse_address", "tracker_for"]
