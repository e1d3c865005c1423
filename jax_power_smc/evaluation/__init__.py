"""Evaluation: methods on the same problems, with intervals, records and one table."""
