"""Helpers that know nothing of the paper: checks, keys, the mesh and the vocabulary's axis."""
