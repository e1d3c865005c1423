"""Measurements that the documentation quotes, as JSON lines."""
