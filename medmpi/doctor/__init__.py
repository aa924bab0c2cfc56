"""What this machine has for training, measured and tried, and what to do about what it lacks."""

from .finding import Finding, State

__all__ = ["Finding", "State"]
