"""Files of results: nothing that was written is lost."""

import pathlib


def keep_older(path: pathlib.Path) -> None:
    """Moves an existing file to the first free name of records.1.jsonl, records.2.jsonl, ..."""
    if not path.exists():
        return
    number = 1
    while (older := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(older)
