"""Trains a tiny reasoner: python -m launch.train --config=configs/train_tiny_reasoner.py ..."""

from jax_power_smc.cli.train import run

if __name__ == "__main__":
    run()
