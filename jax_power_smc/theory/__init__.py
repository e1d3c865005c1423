"""What the paper proves, as functions: Theorem 1, the cost model, exact enumeration."""
