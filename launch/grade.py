"""Grades responses: python -m launch.grade --task=math500 --input=FILE --output=FILE."""

from jax_power_smc.cli.grade import run

if __name__ == "__main__":
    run()
