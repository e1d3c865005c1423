"""What to sample from: p^alpha over stopped sequences, and the rules that stop them."""
