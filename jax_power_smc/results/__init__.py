"""Results of a run, and estimates from several independent runs."""
