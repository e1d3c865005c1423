"""Language models: the transformer, its checkpoints, and a table small enough to enumerate."""
