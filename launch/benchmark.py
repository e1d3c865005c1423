"""Measures: python -m launch.benchmark --config=configs/fidelity.py --workdir=DIR."""

from jax_power_smc.cli.benchmark import run

if __name__ == "__main__":
    run()
