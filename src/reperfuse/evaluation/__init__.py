"""Scores, intervals, the resolution study, figures and the report."""
