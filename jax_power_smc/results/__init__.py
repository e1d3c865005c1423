"""What a run returns, and what several runs say together."""
