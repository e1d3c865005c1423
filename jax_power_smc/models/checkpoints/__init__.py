"""Loading checkpoints in the Hugging Face format, straight to their shards."""
