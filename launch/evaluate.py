"""Evaluates samplers: python -m launch.evaluate --config=configs/tiny_reasoner.py --workdir=DIR."""

from jax_power_smc.cli.evaluate import run

if __name__ == "__main__":
    run()
