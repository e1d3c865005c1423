"""Models of the hub, from a server of our own: what is fetched, what is kept, what is said."""

import contextlib
import http.server
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest

from jax_power_smc.models.checkpoints import hub
from jax_power_smc.models.transformer.config import CheckpointError
from tests.models import small
from tests.paths import ROOT

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
WANTED = (
    "chat_template.jinja",
    "config.json",
    "model-00001-of-00001.safetensors",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
UNWANTED = (
    "README.md",
    "consolidated.safetensors",
    "modeling_own.py",
    "onnx/config.json",
    "original/model.safetensors",
    "preprocessor_config.json",
    "pytorch_model.bin",
    "vocab.json",
)
OLD, TEMPLATE = "special_tokens_map.json", "chat_template.jinja"
SHARD = "model-00001-of-00001.safetensors"

# Every case in a process of its own: the library reads its variables once.
PROGRAM = """
import json, os, sys, time
from jax_power_smc.models.checkpoints import hub

for number, (variables, *arguments) in enumerate(json.loads(sys.argv[1])):
    if not os.fork():
        os.environ.update(variables)
        start = time.monotonic()
        try:
            directory = hub.fetch(*arguments)
            files = {str(path.relative_to(directory)): path.read_text()
                     for path in directory.rglob("*") if path.is_file()}
            out = {"files": files, "directory": directory.name}
        except ValueError as error:
            out = {"error": str(error)}
        with open(f"{number}.json", "w") as file:
            json.dump(out | {"seconds": time.monotonic() - start}, file)
        os._exit(0)
    os.wait()
"""


MODELS = ("owner/model", "owner/other", "owner/third", "owner/fourth")


def content(file, commit):
    return f'{file} {commit[0]} "added_tokens_decoder"'


class Hub(http.server.BaseHTTPRequestHandler):
    """Models with two revisions: those of MODELS; and "owner/gated", "owner/broken"."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path).strip("/")
        self.server.requests.append((path, self.headers.get("Authorization")))
        parts = path.split("/")
        model = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if model == "owner/gated":
            return self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        if model == "owner/broken":
            return self._answer(403, b"", {})
        if model not in MODELS:
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        rest = parts[4:] if parts[0] == "api" else parts[3:]
        revision = rest[rest[0] in ("revision", "tree")] if rest else "main"
        commit = COMMITS.get(revision, revision)
        if commit not in COMMITS.values():
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if parts[0] != "api":
            file = "/".join(parts[4:])
            return self._answer(
                200, content(file, commit).encode(), {"ETag": f'"{file}{commit}"'}, commit
            )
        if rest and rest[0] == "tree":
            files = [
                {
                    "type": "file",
                    "path": file,
                    "size": len(content(file, commit)),
                    "oid": file,
                }
                for file in WANTED + UNWANTED
            ]
            return self._answer(200, json.dumps(files).encode(), {})
        info = {"id": model, "sha": commit, "siblings": []}
        return self._answer(200, json.dumps(info).encode(), {})

    def _answer(self, status, content, headers, commit=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of every case, in this order, and the requests that the hub saw."""
    directory = tmp_path_factory.mktemp("hub")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_CACHE": os.fspath(directory / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_XET": "1",
    }
    with socket.socket() as unused:  # bound and not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        gone = here | {"HF_ENDPOINT": f"http://127.0.0.1:{unused.getsockname()[1]}"}
        offline = here | {"HF_HUB_OFFLINE": "1"}
        cases = {
            "main": (here, "owner/model", None),
            "revision": (here, "owner/model", "v1"),
            "no revision": (here, "owner/model", "v2"),
            "no model": (here, "owner/none", None),
            "commit": (here, "owner/model", COMMITS["v1"]),
            "small": (here, "owner/other", None, hub.SMALL),
            "then all": (here, "owner/other", COMMITS["main"]),
            "gated": (here, "owner/gated", None),
            "error": (here, "owner/broken", None),
            "offline": (offline, "owner/model", None),
            "offline, no model": (offline, "owner/none", "v3"),
            "most": (here, "owner/third", None, [*(set(hub.SMALL) - {OLD}), SHARD]),
            "offline, most": (offline, "owner/third", None, [*hub.SMALL, SHARD]),
            "few": (here, "owner/fourth", None, [*(set(hub.SMALL) - {TEMPLATE}), SHARD]),
            "offline, few": (offline, "owner/fourth", None, [*hub.SMALL, SHARD]),
            "gone": (gone, "owner/model", "v1"),
            "gone, no model": (gone, "owner/none", None),
        }
        subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(list(cases.values()))],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": os.fspath(ROOT)},
            check=True,
            timeout=300,
        )
    server.shutdown()
    server.server_close()
    found = {
        name: json.loads((directory / f"{i}.json").read_text()) for i, name in enumerate(cases)
    }
    return found, server.requests


@pytest.mark.parametrize(
    ("case", "commit"), [("main", "a"), ("revision", "b"), ("offline", "a"), ("gone", "b")]
)
def test_what_a_model_is_loaded_from_and_no_more(outcomes, case, commit):
    # Without a hub it is what the cache holds.
    assert outcomes[0][case]["files"] == {file: content(file, commit) for file in WANTED}


def test_nothing_else_is_asked_for(outcomes):
    asked = {path for path, _ in outcomes[1]}
    assert any(path.endswith("/tokenizer.json") for path in asked)
    assert not [path for path in asked if path.endswith(UNWANTED)]


def test_the_directory_is_named_like_the_commit(outcomes):
    assert outcomes[0]["main"]["directory"] == COMMITS["main"]
    assert outcomes[0]["commit"]["directory"] == COMMITS["v1"]


def test_weights_can_be_left_out(outcomes):
    small_ones = {file for file in WANTED if not file.endswith(".safetensors")}
    assert set(outcomes[0]["small"]["files"]) == small_ones
    assert set(outcomes[0]["then all"]["files"]) == set(WANTED)


def test_the_token_of_the_environment_is_used(outcomes):
    # The library also asks for things of its own, not for a model.
    tokens = {token for path, token in outcomes[1] if "owner/" in path}
    assert tokens == {"Bearer hf_secret"}


def test_a_cache_may_lack_what_is_not_read(outcomes):
    assert set(outcomes[0]["offline, most"]["files"]) == set(WANTED) - {OLD}


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("offline, few", ["'owner/fourth' is neither a directory nor fully in the hub's cache"]),
        ("no revision", ["'owner/model' has no revision 'v2'"]),
        (
            "no model",
            ["'owner/none' is neither a directory nor fully in", "the hub has no such model"],
        ),
        ("gated", ["'owner/gated'", "accepted its terms and set HF_TOKEN"]),
        ("error", ["'owner/broken'", "the hub cannot be reached", "403"]),
        ("offline, no model", ["'owner/none' at revision 'v3' is neither", "offline mode"]),
        ("gone, no model", ["'owner/none' is neither", "the hub cannot be reached", "refused"]),
    ],
)
def test_one_sentence_in_seconds(outcomes, case, parts):
    outcome = outcomes[0][case]
    small.assert_sentence(outcome["error"], *parts)
    assert outcome["seconds"] < 60  # on a busy machine, with the start of a process


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen2.5-Math-7B", True),
        ("a/b_c.d-e", True),
        ("tiny-reasoner", False),
        ("no/such/directory", False),
        ("./model", False),
        ("../model", False),
        ("~/model", False),
        ("/model", False),
        ("model/", False),
        ("a/b\n", False),
        ("owner/mödel", False),
    ],
)
def test_which_names_are_ids(name, expected):
    assert hub.is_hub_id(name) == expected


def test_id_that_cannot_be():
    with pytest.raises(CheckpointError) as error:
        hub.fetch("owner/a..b")
    small.assert_one_sentence(error, "'owner/a..b'", "possible hub id")


# --- A hub whose answers trickle --------------------------------------------------------------


class Trickle(Hub):
    """Sends what the test says, of "info", "tree" and "file", a byte a second, without end."""

    def do_GET(self):
        path = urllib.parse.urlparse(self.path).path.strip("/").split("/")
        kind = "file" if path[0] != "api" else "tree" if "tree" in path else "info"
        if kind != self.server.slow or self.command == "HEAD":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.server.stop.wait(1.0):
                self.wfile.write(b" ")
                self.wfile.flush()


@pytest.fixture
def trickle(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Trickle)
    server.requests, server.slow, server.stop = [], "nothing", threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_CACHE": os.fspath(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("slow", "parts"),
    [
        ("info", ["neither a directory nor fully in the hub's cache", "not answered in 6 s"]),
        ("tree", ["the download of model 'owner/model' failed (no progress in 2 s)"]),
        ("file", ["the download of model 'owner/model' failed (no progress in 2 s)"]),
    ],
)
def test_a_hub_that_trickles_is_given_up(trickle, monkeypatch, slow, parts):
    trickle.slow = slow
    # On a busy machine a request takes seconds.
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 6.0 if slow == "info" else 120.0)
    started, start = [], subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **b: started.append(start(*a, **b)) or started[-1]
    )
    began = time.monotonic()
    with pytest.raises(CheckpointError) as error:
        hub.fetch("owner/model", seconds=2.0)
    assert time.monotonic() - began < 150
    small.assert_one_sentence(error, "'owner/model'", *parts)
    assert [process.poll() for process in started] == [-signal.SIGKILL]


def test_a_download_that_goes_on_is_not_given_up(trickle, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 120.0)
    sizes = itertools.count(0, 10**6)
    monkeypatch.setattr(hub, "_bytes_in", lambda cache: next(sizes))
    said = hub.fetch("owner/model", seconds=0.01)
    assert {path.name for path in said.iterdir()} == set(WANTED)


def test_progress_is_what_is_on_the_disk(tmp_path):
    before = hub._bytes_in(tmp_path)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a").touch()
    os.truncate(tmp_path / "blobs" / "a", 2**30)  # a hole
    assert hub._bytes_in(tmp_path) - before < 2**20
    (tmp_path / "blobs" / "b").write_bytes(bytes(2**20))
    assert hub._bytes_in(tmp_path) - before >= 2**20
    assert hub._bytes_in(tmp_path / "absent") == 0


def test_a_process_that_ends_is_an_error(trickle, monkeypatch):
    monkeypatch.setattr(hub.hub_child, "__file__", os.devnull)
    with pytest.raises(CheckpointError, match=r"failed \(its process ended\)"):
        hub.fetch("owner/model")


def test_one_file_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--owner--model"
    for name, commit in COMMITS.items():
        folder = model / "snapshots" / commit
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(name)
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / name).write_text(commit)
    for revision, name in ((None, "main"), ("v1", "v1"), (COMMITS["v1"], "v1")):
        found = hub.cached("owner/model", "config.json", revision)
        assert found is not None and found.read_text() == name
    assert hub.cached("owner/model", "tokenizer.json") is None
    assert hub.cached("owner/model", "config.json", "v2") is None
    assert hub.cached("owner/other", "config.json") is None
    # The hub said that there is none.
    (model / ".no_exist" / COMMITS["main"]).mkdir(parents=True)
    (model / ".no_exist" / COMMITS["main"] / "tokenizer.json").touch()
    assert hub.cached("owner/model", "tokenizer.json") is None
