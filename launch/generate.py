"""Answers one prompt: python -m launch.generate --model=tiny-reasoner --prompt="..."."""

from jax_power_smc.cli.generate import run

if __name__ == "__main__":
    run()
