"""Checkpoints in Hugging Face format: found, read straight into their shards, and written."""
