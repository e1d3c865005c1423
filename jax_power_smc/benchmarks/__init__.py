"""Measurements that the README quotes, as JSON lines."""
