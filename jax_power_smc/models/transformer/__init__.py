"""The decoder-only transformer with particle-aware attention and cache."""
