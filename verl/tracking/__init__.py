"""Metrics out of the training loop: one interface, several trackers, none of which the loop knows by name."""

from verl.tracking.base import Tracker, make_tracker

__all__ = ["Tracker", "make_tracker"]
