"""Experiment-tracked stroke imaging: perfusion maps, lesion masks, and what resolution costs."""

__version__ = "0.1.0"
