"""Names become folders: on this disk, shipped, or from a hub on the loopback interface."""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from primelens import hub
from primelens.bundle import open_bundle
from primelens.errors import (
    BundleVersionError,
    DependencyError,
    ModelNotFoundError,
    OptionError,
)
from primelens.hub import resolve

FIRST, SECOND = "1" * 40, "2" * 40


@dataclass
class Hub:
    """What the server has, how it misbehaves, and what it was asked."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> path -> bytes
    branches: dict[str, str] = field(default_factory=lambda: {"main": FIRST})
    gated: bool = False
    broken: bool = False
    truncate: dict[str, int] = field(default_factory=dict)  # path -> how many GETs to cut short
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""

    def downloads(self) -> list[str]:
        return sorted(line.rsplit("/", 1)[1] for line in self.asked if line.startswith("GET /o"))


class _Handler(BaseHTTPRequestHandler):
    """The part of the hub's HTTP interface that downloads need; one repository, owner/model."""

    hub: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.broken:
            return self._send(500, b"down", body=body)
        if "/owner/model" not in path:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
        if self.hub.gated:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body=body)
        what, _, rest = path.split("/owner/model/", 1)[1].partition("/")
        revision, _, file = rest.partition("/")
        commit = self.hub.branches.get(revision, revision)
        if commit not in self.hub.files:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
        files = self.hub.files[commit]
        if what == "revision":
            siblings = [{"rfilename": name} for name in files]
            return self._json({"id": "owner/model", "sha": commit, "siblings": siblings})
        if what == "tree":
            return self._json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                    for name, data in files.items()
                ]
            )
        if file not in files:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body=body)
        data = files[file]
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit}
        return self._send(200, data, headers, body=body, file=file)

    def _json(self, data: Any) -> None:
        self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"}, body=True)

    def _send(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        *,
        body: bool,
        file: str = "",
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body:
            return
        if self.hub.truncate.get(file, 0) > 0:
            self.hub.truncate[file] -= 1
            data = data[: len(data) // 2]
        self.wfile.write(data)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of one's own, which huggingface_hub is pointed at, with empty caches."""
    constants = pytest.importorskip("huggingface_hub.constants")
    state = Hub()
    handler = type("Handler", (_Handler,), {"hub": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", state.endpoint)
    template = state.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.delenv(hub.CACHE_VARIABLE, raising=False)
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _bundle_files(fake_bundle: Any) -> dict[str, bytes]:
    return _contents(Path(fake_bundle.folder))


def test_a_bundle_arrives_whole_as_real_files(served: Hub, fake_bundle: Any) -> None:
    files = _bundle_files(fake_bundle)
    beside = {".gitattributes": b"x", "notes.onnx": b"not listed", "sub/model.onnx": b"deeper"}
    served.files[FIRST] = {**files, **beside}
    folder = resolve("owner/model")
    assert folder.name == FIRST
    assert folder.parent.name == "owner--model"
    assert _contents(folder) == files
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in folder.iterdir())
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []
    assert open_bundle(folder).manifest.name
    assert "notes.onnx" not in served.downloads()
    leftovers = [path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")]
    assert leftovers == [FIRST]


def test_a_second_use_downloads_nothing(served: Hub, fake_bundle: Any) -> None:
    served.files[FIRST] = _bundle_files(fake_bundle)
    folder = resolve("owner/model")
    served.asked.clear()
    assert resolve("owner/model") == folder
    assert served.downloads() == []


def test_a_second_use_works_offline(
    served: Hub, fake_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.files[FIRST] = _bundle_files(fake_bundle)
    folder = resolve("owner/model")
    served.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve("owner/model") == folder
    assert served.asked == []
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE is set"):
        resolve("owner/model", revision="other")


def test_a_second_use_works_where_the_hub_is_down(
    served: Hub, fake_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.files[FIRST] = _bundle_files(fake_bundle)
    folder = resolve("owner/model")
    served.broken = True
    assert resolve("owner/model") == folder
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert resolve("owner/model") == folder


def test_a_revision_is_pinned(served: Hub, fake_bundle: Any) -> None:
    old, new = _bundle_files(fake_bundle), _bundle_files(fake_bundle)
    new["bundle.json"] = new["bundle.json"].replace(b'"name": "', b'"name": "newer-', 1)
    served.files = {FIRST: old, SECOND: new}
    assert resolve("owner/model", revision=SECOND).name == SECOND
    assert resolve("owner/model").name == FIRST
    served.branches["main"] = SECOND
    moved = resolve("owner/model")
    assert moved.name == SECOND
    assert open_bundle(moved).manifest.name.startswith("newer-")
    assert resolve("owner/model", revision=FIRST).name == FIRST


def test_an_own_cache_folder(
    served: Hub, fake_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.files[FIRST] = _bundle_files(fake_bundle)
    monkeypatch.setenv(hub.CACHE_VARIABLE, str(tmp_path / "mine"))
    assert resolve("owner/model") == tmp_path / "mine" / "bundles" / "owner--model" / FIRST


def test_a_truncated_download_is_refused_and_taken_up_again(
    served: Hub, fake_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub waits between attempts
    served.files[FIRST] = _bundle_files(fake_bundle)
    largest = max(served.files[FIRST], key=lambda name: len(served.files[FIRST][name]))
    served.truncate[largest] = 1000
    with pytest.raises(ModelNotFoundError, match="owner/model") as caught:
        resolve("owner/model")
    assert "whole files are kept" in str(caught.value)
    kept = Path(hub._cache(hub._hub("owner/model"))) / "bundles" / "owner--model"
    assert not (kept / FIRST).exists()
    served.truncate.clear()
    served.asked.clear()
    assert _contents(resolve("owner/model")) == served.files[FIRST]
    assert largest in served.downloads()
    assert len(served.downloads()) < len(served.files[FIRST])
    assert not (kept / f".{FIRST}.partial").exists()


def test_two_at_once_get_the_same_folder(served: Hub, fake_bundle: Any) -> None:
    served.files[FIRST] = _bundle_files(fake_bundle)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(resolve("owner/model"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert _contents(found[0]) == served.files[FIRST]


def test_a_listed_file_that_is_not_there(served: Hub, fake_bundle: Any) -> None:
    served.files[FIRST] = _bundle_files(fake_bundle)
    missing = next(name for name in served.files[FIRST] if name != "bundle.json")
    del served.files[FIRST][missing]
    with pytest.raises(ModelNotFoundError, match=missing):
        resolve("owner/model")


def test_a_newer_bundle_is_refused_before_its_weights_are_fetched(
    served: Hub, fake_bundle: Any
) -> None:
    files = _bundle_files(fake_bundle)
    manifest = json.loads(files["bundle.json"])
    manifest["format_version"] = 999
    served.files[FIRST] = {**files, "bundle.json": json.dumps(manifest).encode()}
    with pytest.raises(BundleVersionError):
        resolve("owner/model")
    assert served.downloads() == ["bundle.json"]


def test_a_checkpoint_is_not_a_bundle(served: Hub) -> None:
    served.files[FIRST] = {"config.json": b"{}", "model.safetensors": b"x"}
    with pytest.raises(ModelNotFoundError, match=r"has no bundle\.json") as caught:
        resolve("owner/model")
    assert "primelens export owner/model" in caught.value.remedy


def test_a_checkpoint_comes_without_pickles(served: Hub) -> None:
    wanted = ["config.json", "merges.txt", "model.safetensors", "spiece.model", "tokenizer.json"]
    others = ["pytorch_model.bin", "model.pt", "model.pkl", "code.py", "onnx/x.json", "README.md"]
    served.files[FIRST] = dict.fromkeys([*wanted, *others], b"{}")
    folder = resolve("owner/model", kind="checkpoint")
    assert sorted(path.name for path in folder.iterdir()) == wanted
    folder = resolve("owner/model", kind="checkpoint", allow_pickle=True)
    assert "pytorch_model.bin" in {path.name for path in folder.iterdir()}
    assert "code.py" not in {path.name for path in folder.iterdir()}


def test_a_checkpoint_of_pickles_alone_is_refused(served: Hub) -> None:
    served.files[FIRST] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(ModelNotFoundError, match="no weights as safetensors"):
        resolve("owner/model", kind="checkpoint")
    assert "pytorch_model.bin" not in served.downloads()
    assert resolve("owner/model", kind="checkpoint", allow_pickle=True).is_dir()


def test_a_bundle_is_not_a_checkpoint(served: Hub) -> None:
    served.files[FIRST] = {"bundle.json": b"{}"}
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        resolve("owner/model", kind="checkpoint")


@pytest.mark.parametrize(
    ("change", "said", "remedy"),
    [
        ({"gated": True}, "access is restricted", "hf auth login"),
        ({"broken": True}, "HTTP 500|hub", "again"),
        ({}, "no revision 'v9'", "branch, tag or full commit"),
    ],
)
def test_each_refusal_of_the_hub_is_told(
    served: Hub, change: dict[str, Any], said: str, remedy: str
) -> None:
    served.files[FIRST] = {"bundle.json": b"{}"}
    for name, value in change.items():
        setattr(served, name, value)
    with pytest.raises(ModelNotFoundError, match=said) as caught:
        resolve("owner/model", revision=None if change else "v9")
    assert remedy in caught.value.remedy
    assert served.endpoint in caught.value.message
    assert caught.value.__cause__ is not None


def test_an_unknown_model_says_what_was_tried(served: Hub) -> None:
    with pytest.raises(ModelNotFoundError, match="no such model, or it is private") as caught:
        resolve("owner/typo")
    assert str(Path("owner/typo").absolute()) in str(caught.value)
    assert served.endpoint in str(caught.value)


def test_no_network_at_all(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelNotFoundError, match=r"127\.0\.0\.1:9") as caught:
        resolve("owner/model")
    assert "network" in caught.value.remedy


def test_a_full_disk_is_told(
    served: Hub, fake_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.files[FIRST] = _bundle_files(fake_bundle)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(ModelNotFoundError, match="the disk is full"):
        resolve("owner/model")


def test_a_folder_wins_over_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("owner/model", "default", "sp ace"):
        (tmp_path / name).mkdir(parents=True)
        assert resolve(name) == Path(name)
        assert resolve(tmp_path / name) == tmp_path / name
    with pytest.raises(OptionError, match="revision"):
        resolve("owner/model", revision="main")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/default") == tmp_path / "default"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nowhere",
        "./owner/model",
        "/no/such",
        "a/b/c",
        "a\\b",
        "../x",
        "o/..",
        "a/b\0",
        "x" * 5000,
        "owner/",
        "/model",
        "~nobody/x",
        "owner/mo del",
        "https://example.org/owner/model",
    ],
)
def test_what_is_no_name_at_all(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_hub", lambda _: pytest.fail("the hub must not be asked"))
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(name)
    assert len(str(caught.value)) < 1500


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        resolve(tmp_path / "bundle.json")


def test_the_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_ASSETS", tmp_path / "assets")
    with pytest.raises(ModelNotFoundError, match="no shipped model 'default'"):
        resolve("default")
    (tmp_path / "assets" / "default").mkdir(parents=True)
    (tmp_path / "assets" / "default" / "bundle.json").write_text("{}")
    assert resolve("default") == tmp_path / "assets" / "default"
    with pytest.raises(ModelNotFoundError, match="not a folder"):
        resolve("default", kind="checkpoint")
    with pytest.raises(OptionError, match="revision"):
        resolve("default", revision="main")


def test_without_huggingface_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DependencyError, match=r"pip install primelens\[hub\]"):
        resolve("owner/model")


def test_the_environment_variables_reach_the_hub(
    served: Hub, fake_bundle: Any, tmp_path: Path
) -> None:
    served.files[FIRST] = _bundle_files(fake_bundle)
    environment = {
        **os.environ,
        "HF_ENDPOINT": served.endpoint,
        "HF_HOME": str(tmp_path / "other"),
        "HF_HUB_DISABLE_XET": "1",
    }
    environment.pop("HF_HUB_CACHE", None)
    code = "from primelens.hub import resolve; print(resolve('owner/model'))"
    for offline in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        expected = tmp_path / "other" / "primelens" / "bundles" / "owner--model" / FIRST
        assert Path(done.stdout.strip()) == expected
