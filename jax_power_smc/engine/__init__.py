"""The decode engine: the step, its compiled programs, and the scheduler on the host."""
