"""The tiny reasoner, the embedded model: its problems, tokenizer, batches and training."""
