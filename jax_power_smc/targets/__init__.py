"""The target distribution p^alpha over stopped sequences, and the rules that stop them."""
