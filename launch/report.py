"""Plots and a page of an evaluation: python -m launch.report --workdir=DIR."""

from jax_power_smc.cli.report import run

if __name__ == "__main__":
    run()
