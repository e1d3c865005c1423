"""The files of a model's directory, which may come from a stranger: what is read of them at all."""

import pathlib
from typing import Any

from jax_power_smc.core.files import naming, parse_json
from jax_power_smc.models.transformer.config import CheckpointError

# The largest published index of safetensors files has 9 MB.
LARGEST_JSON = 64 * 2**20


def read_object(path: pathlib.Path, most: int = LARGEST_JSON) -> dict[str, Any]:
    """The JSON object in a file of at most ``most`` bytes; an empty one if there is no such file.

    Raises:
      CheckpointError: if the file is larger or holds anything else.
    """
    if not path.is_file():
        return {}
    with naming(path), open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes; at most {most} bytes of JSON are read."
        )
    try:
        # Not strictly: NaN among settings that are not used here has never been an error.
        value = parse_json(content.decode("utf-8"), strict=False)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a JSON object ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object (it is a JSON {type(value).__name__}).")
    return value


def own_file(directory: pathlib.Path, name: str, named_by: str = "") -> pathlib.Path:
    """The path of a file of the model, which need not exist.

    Args:
      directory: of the model.
      name: of the file, relative to the directory.
      named_by: the file that gives this name, if any, for errors.

    Raises:
      CheckpointError: if the path, with all links followed, leads out of the directory. In the
        hub's cache, where directories hold links to the model's "blobs", those count as inside.
    """
    allowed = [directory]
    if directory.parent.name == "snapshots":
        allowed.append(directory.parents[1] / "blobs")
    try:
        path = (directory / name).resolve()
        homes = [each.parent.resolve() / each.name for each in allowed[1:]]
        is_inside = any(path.is_relative_to(home) for home in (directory.resolve(), *homes))
    except (OSError, RuntimeError, ValueError):  # links in a circle, a zero byte
        is_inside = False
    if not is_inside:
        source = f"{directory / named_by} names" if named_by else f"{directory} has"
        raise CheckpointError(
            f"{source} {name[:200]!r}, which leads out of that directory; a model's weights and "
            "chat templates must lie in its own directory, without links to elsewhere."
        )
    return directory / name
