"""Answers one prompt: python -m launch.generate --model=tiny-reasoner --prompt="..."."""

from jax_power_smc.launchers.generate import run

if __name__ == "__main__":
    run()
