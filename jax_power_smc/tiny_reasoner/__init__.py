"""The tiny reasoner: its problems, tokenizer, batches and training."""
