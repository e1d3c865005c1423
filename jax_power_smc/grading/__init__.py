"""Grading responses: one module per kind of answer, all behind the ``Grader`` protocol."""
