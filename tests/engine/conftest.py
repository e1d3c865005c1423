"""What tests of the engine share."""

from tests.engine.integrity import integrity

__all__ = ["integrity"]
