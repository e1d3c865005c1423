"""Command-line launchers; each module's ``run`` is an entry point."""
