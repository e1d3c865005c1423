"""Judging responses: each kind of answer in a file of its own, behind one ``Grader``."""
