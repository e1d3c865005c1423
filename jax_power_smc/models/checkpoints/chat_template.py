"""A checkpoint's chat template, rendered in a process with limits on time, memory and output."""

import atexit
import datetime
import os
import pathlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jax_power_smc.core.subprocesses import WorkerError
from jax_power_smc.core.worker_process import WorkerProcess
from jax_power_smc.models.checkpoints.model_files import own_file

TEMPLATE_SECONDS, MOST_MEMORY = 10.0, 2**30
# Files beside tokenizer_config.json that may hold templates.
_FILES = ("chat_template.jinja", "chat_template.json", "chat_templates/*.jinja")


class TemplateError(ValueError):
    """The template has no text for a conversation; the message says why, without a full stop."""


def refuse_outside(directory: pathlib.Path) -> None:
    """Raises CheckpointError if a template is a link to a file outside the model's directory.

    Its text would be part of every prompt.
    """
    for pattern in _FILES:
        for path in directory.glob(pattern):
            own_file(directory, os.fspath(path.relative_to(directory)))


def render(
    template: str,
    turns: Sequence[Mapping[str, str]],
    variables: Mapping[str, Any],
    *,
    date: datetime.date | None = None,
    seconds: float,
    characters: int,
) -> str:
    """The text of a conversation; see ``template_rendering.render``.

    Raises:
      TemplateError: if the template fails, or takes more time, memory or characters.
    """
    worker = _worker(seconds)
    asked = worker.thread.submit(
        worker.call,
        "render",
        template=template,
        turns=turns,
        variables=variables,
        date=None if date is None else date.isoformat(),
        most=characters,
    )
    try:
        result = asked.result()
    except WorkerError as error:
        raise TemplateError(str(error)) from error
    if "error" in result:
        raise TemplateError(result["error"])
    return str(result["text"])


class _Renderer(WorkerProcess):
    """The process, and the one thread that calls it: the process would end with a caller's."""

    def __init__(self, seconds: float) -> None:
        rendering = "jax_power_smc.models.checkpoints.template_rendering"
        super().__init__(rendering, seconds, MOST_MEMORY)
        self.thread, self._owner = ThreadPoolExecutor(max_workers=1), os.getpid()
        atexit.register(self._close)

    def _close(self) -> None:
        if os.getpid() == self._owner:
            self.close()


# By process, because a fork must not talk to the process of its parent, and by time limit. It lives
# as long as this process: starting it takes longer than rendering.
_renderers: dict[tuple[int, float], _Renderer] = {}


def _worker(seconds: float) -> _Renderer:
    key = os.getpid(), seconds
    if key not in _renderers:
        _renderers.setdefault(key, _Renderer(seconds))
    return _renderers[key]
