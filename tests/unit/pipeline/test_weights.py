"""Weights are fetched from a real HTTP server, believed only when checked, and judged by their lock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hub_server import Hub, Repository, serve, sha256
from huggingface_hub import constants, errors
from safetensors.numpy import save

from models.reconviagen.weights_folder import DINOV2, TRELLIS, VGGT
from pipeline import weights_fetch
from pipeline.weights import SOURCES, Source, State, check_weights, inventory, require, weights_problem
from pipeline.weights_fetch import fetch_weights
from pipeline.weights_lock import LOCK_NAME, read_lock
from schemas.errors import AccessError, ErrorCode, ModelError, ReconError, ResourceError

FIRST, SECOND = "1" * 40, "2" * 40
NAME = "owner/net"
MODEL = f"{NAME}/model.safetensors"
SOURCE = Source(NAME, FIRST, ("config.json", "model*.safetensors*"))
ROOT = Path(__file__).resolve().parents[3]


def tensors(seed: int, count: int = 40_000) -> bytes:
    return save({"weight": np.random.default_rng(seed).standard_normal(count, dtype=np.float32)})


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def hub():
    files = {"config.json": b'{"width": 8}', "model.safetensors": tensors(0), "model.bin": b"not wanted"}
    newer = {"config.json": b'{"width": 9}', "model.safetensors": tensors(1)}
    with serve(Hub(repositories={NAME: Repository({FIRST: files, SECOND: newer})})) as running:
        yield running


@pytest.fixture
def cut(hub: Hub) -> int:
    """A large file, whose transfer is cut once after two chunks and a bit; the bytes that were kept."""
    chunk = constants.DOWNLOAD_CHUNK_SIZE
    hub.repositories[NAME].commits[FIRST]["model.safetensors"] = tensors(0, chunk)
    hub.cuts["model.safetensors"] = 2 * chunk + 1000
    return 2 * chunk


def fetch(hub: Hub, root: Path, source: Source = SOURCE, **keywords: object):
    return fetch_weights(root, [source], endpoint=hub.endpoint, **keywords)


def content(hub: Hub, commit: str = FIRST) -> bytes:
    return hub.repositories[NAME].commits[commit]["model.safetensors"]


def states(root: Path, **keywords: object) -> dict[str, State]:
    return {each.path: each.state for each in check_weights(root, [SOURCE], **keywords)}


# --- Downloads


def test_fetch_brings_what_is_wanted_and_locks_it(hub: Hub, tmp_path: Path):
    progress: list[tuple[int, int]] = []
    lock = fetch(hub, tmp_path, on_progress=lambda path, done, total: progress.append((done, total)))
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == sorted([".fetch.lock", LOCK_NAME, f"{NAME}/config.json", MODEL])
    assert (tmp_path / MODEL).read_bytes() == content(hub)
    entry = lock.repositories[NAME]
    assert (entry.revision, entry.files["model.safetensors"].sha256) == (FIRST, sha256(content(hub)))
    assert read_lock(tmp_path) == lock
    assert all(done <= total for done, total in progress)
    assert progress[-1] == (sum(each.size for each in entry.files.values()),) * 2
    assert weights_problem(tmp_path, [SOURCE]) is None


def test_a_complete_folder_asks_the_hub_for_nothing(hub: Hub, tmp_path: Path):
    fetch(hub, tmp_path)
    hub.requests.clear()
    hub.down = True
    fetch(hub, tmp_path)
    assert not hub.requests


def test_a_complete_folder_need_not_be_writable(hub: Hub, tmp_path: Path, monkeypatch):
    lock = fetch(hub, tmp_path)
    (tmp_path / ".fetch.lock").unlink()
    before = sorted(tmp_path.rglob("*"))

    def refuse(*_: object, **__: object) -> None:  # whoever runs the tests as root may write anywhere
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    said: list[str] = []
    assert fetch(hub, tmp_path, say=said.append) == lock
    assert sorted(tmp_path.rglob("*")) == before
    assert any(text.startswith(f"checking {MODEL}") for text in said), "reading it through takes a while"


def test_a_cut_connection_is_taken_up_again(hub: Hub, cut: int, tmp_path: Path):
    fetch(hub, tmp_path)
    starts = [each.start for each in hub.downloads() if each.path.endswith(".safetensors")]
    assert starts == [0, cut]
    assert (tmp_path / MODEL).read_bytes() == content(hub)


def test_an_interrupted_fetch_goes_on_where_it_stopped(hub: Hub, cut: int, tmp_path: Path):
    hub.down_after_cut = True
    with pytest.raises(ResourceError) as caught:
        fetch(hub, tmp_path)
    assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert not (tmp_path / NAME).exists(), "nothing takes its place before all is there"
    assert read_lock(tmp_path) is None

    hub.down = False
    hub.requests.clear()
    fetch(hub, tmp_path)
    assert [(each.path.rsplit("/", 1)[1], each.start) for each in hub.downloads()] == [
        ("model.safetensors", cut)
    ], "config.json was there already"
    assert (tmp_path / MODEL).read_bytes() == content(hub)


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub: Hub, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(hub, tmp_path)
    tokens = {(each.host, each.token) for each in hub.requests}
    assert tokens == {("127.0.0.1", "Bearer hf_secret"), ("localhost", None)}


# --- Refusals


def test_other_bytes_than_the_hub_states_are_refused(hub: Hub, tmp_path: Path):
    hub.repositories[NAME].stated["model.safetensors"] = "0" * 64
    with pytest.raises(ModelError, match="SHA-256") as caught:
        fetch(hub, tmp_path)
    assert caught.value.code is ErrorCode.MODEL_WEIGHTS_INVALID
    assert caught.value.details["file"] == MODEL
    assert not list(tmp_path.rglob("*.safetensors*"))


def test_other_files_than_the_pinned_ones_are_refused_before_they_are_downloaded(hub: Hub, tmp_path: Path):
    pinned = replace(SOURCE, sha256={"model.safetensors": "0" * 64})
    with pytest.raises(ModelError, match="another file than the one locked"):
        fetch(hub, tmp_path, pinned)
    assert not hub.downloads()


def test_a_json_file_that_is_not_the_pinned_one_is_refused(hub: Hub, tmp_path: Path):
    # The hub states no SHA-256 of small files: only the bytes tell.
    with pytest.raises(ModelError, match="SHA-256"):
        fetch(hub, tmp_path, replace(SOURCE, sha256={"config.json": "0" * 64}))


def test_pickles_are_refused_by_name(hub: Hub, tmp_path: Path):
    with pytest.raises(ModelError, match="files are fetched"):
        fetch(hub, tmp_path, replace(SOURCE, files=("config.json", "model.*")))
    assert not hub.downloads()


def test_pickles_are_refused_by_content(hub: Hub, tmp_path: Path):
    hub.repositories[NAME].commits[FIRST]["model.safetensors"] = pickle.dumps({"weight": list(range(1000))})
    with pytest.raises(ModelError, match="no safetensors file"):
        fetch(hub, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors*"))


@pytest.mark.parametrize(
    "path", ["../model.safetensors", "/tmp/model.safetensors", "a/../../model.safetensors"]
)
def test_paths_may_not_leave_the_folder(hub: Hub, tmp_path: Path, path: str):
    hub.repositories[NAME].commits[FIRST][path] = tensors(2)
    with pytest.raises(ModelError, match="names the path"):
        fetch(hub, tmp_path, replace(SOURCE, files=("*.safetensors",)))


def test_what_the_hub_does_not_have_is_named(hub: Hub, tmp_path: Path):
    for source, word in [
        (replace(SOURCE, repository="owner/other"), "owner/other"),
        (replace(SOURCE, revision="3" * 40), NAME),
        (replace(SOURCE, files=("config.json", "vocabulary.json")), "vocabulary.json"),
    ]:
        with pytest.raises(AccessError, match=word) as caught:
            fetch(hub, tmp_path, source)
        assert caught.value.code is ErrorCode.INPUT_NOT_FOUND


def test_a_full_disk_is_noticed_beforehand(hub: Hub, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(weights_fetch, "SPARE_BYTES", 2**62)
    with pytest.raises(ResourceError) as caught:
        fetch(hub, tmp_path)
    assert caught.value.code is ErrorCode.DISK_FULL
    assert not hub.downloads()


def test_two_fetches_do_not_write_into_one_folder(hub: Hub, tmp_path: Path):
    with (tmp_path / ".fetch.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(ResourceError, match="Another"):
            fetch(hub, tmp_path)


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """What a disk with room for `limit` bytes a file is like; the system itself refuses to write more."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_fills_up_meanwhile_is_named_with_what_is_missing(hub: Hub, tmp_path: Path, monkeypatch):
    # The system's bound on a file's size stands for the end of a disk: the same refusal, another number.
    monkeypatch.setattr(weights_fetch, "DISK_FULL_ERRNOS", frozenset({errno.EFBIG}))
    hub.repositories[NAME].commits[FIRST]["model.safetensors"] = tensors(0, 5_000_000)
    with small_disk(100_000), pytest.raises(ResourceError) as caught:
        fetch(hub, tmp_path)
    assert caught.value.code is ErrorCode.DISK_FULL
    assert f"The disk of {tmp_path} is full; 0.02 GB of weights are missing" in caught.value.message
    assert read_lock(tmp_path) is None
    fetch(hub, tmp_path)
    assert weights_problem(tmp_path, [SOURCE]) is None


def test_what_is_left_of_another_revision_makes_room(hub: Hub, cut: int, tmp_path: Path):
    hub.down_after_cut = True
    with pytest.raises(ResourceError):
        fetch(hub, tmp_path)
    left = tmp_path / ".fetch" / NAME / FIRST
    assert list(left.iterdir())
    with pytest.raises(ResourceError):
        fetch(hub, tmp_path, replace(SOURCE, revision=SECOND))
    hub.down = False
    seen: list[bool] = []
    fetch(hub, tmp_path, replace(SOURCE, revision=SECOND), on_progress=lambda *_: seen.append(left.exists()))
    assert seen
    assert not any(seen)


def test_a_hub_that_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and answers none
        endpoint = f"http://user:word@127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ResourceError) as caught:
            fetch_weights(tmp_path, [SOURCE], endpoint=endpoint)
    assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert f"the hub at {endpoint.replace('user:word@', '')}" in caught.value.message


def test_a_refusal_shows_no_rights_of_signed_addresses(hub: Hub, tmp_path: Path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise errors.HTTPError("403 for url 'https://cdn.example.org/x?Signature=secret'\nmore about it")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", refuse)
    with pytest.raises(ResourceError) as caught:
        fetch(hub, tmp_path)
    assert caught.value.message.endswith("403 for url 'https://cdn.example.org/x'")
    assert hub.endpoint in caught.value.message


def test_a_mistake_in_the_program_is_not_the_hubs(hub: Hub, tmp_path: Path, monkeypatch):
    def other(url: str) -> None:
        raise AssertionError("called without what it takes")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", other)
    with pytest.raises(TypeError):
        fetch(hub, tmp_path)


def test_no_more_is_taken_than_the_hub_has_listed(hub: Hub, tmp_path: Path):
    hub.surplus["model.safetensors"] = b"\0" * (1 << 20)
    with pytest.raises(ModelError, match="more than that arrives") as caught:
        fetch(hub, tmp_path)
    assert caught.value.details["file"] == MODEL
    assert not list(tmp_path.rglob("*.safetensors*"))


def test_a_folder_in_the_place_of_a_file_is_named_before_anything_is_downloaded(hub: Hub, tmp_path: Path):
    fetch(hub, tmp_path)
    (tmp_path / MODEL).unlink()
    (tmp_path / MODEL).mkdir()
    hub.requests.clear()
    with pytest.raises(ModelError, match=f"remove it: {tmp_path / MODEL}") as caught:
        fetch(hub, tmp_path)
    assert caught.value.code is ErrorCode.MODEL_WEIGHTS_INVALID
    assert not hub.downloads()
    problem = weights_problem(tmp_path, [SOURCE])
    assert problem is not None
    assert problem.code is ErrorCode.MODEL_WEIGHTS_INVALID
    assert f"remove it: {tmp_path / MODEL}" in problem.message


# --- Revisions


def test_update_takes_the_newest_revision_and_locks_it(hub: Hub, tmp_path: Path):
    fetch(hub, tmp_path)
    fetch(hub, tmp_path)
    assert (tmp_path / MODEL).read_bytes() == content(hub, FIRST), "not without being asked"
    said: list[str] = []
    lock = fetch(hub, tmp_path, update=True, say=said.append)
    assert (tmp_path / MODEL).read_bytes() == content(hub, SECOND)
    assert (lock.repositories[NAME].revision, lock.repositories[NAME].updated) == (SECOND, True)
    assert any(SECOND in text for text in said)
    assert fetch(hub, tmp_path) == lock, "what was asked for stays"
    assert weights_problem(tmp_path, [SOURCE]) is None


def test_a_new_pin_is_fetched_and_missed_until_then(hub: Hub, tmp_path: Path):
    fetch(hub, tmp_path)
    newer = replace(SOURCE, revision=SECOND)
    problem = weights_problem(tmp_path, [newer])
    assert problem is not None
    assert problem.code is ErrorCode.MODEL_WEIGHTS_MISSING
    assert FIRST in problem.message
    assert f"recon weights fetch --folder {tmp_path}" in problem.message
    fetch(hub, tmp_path, newer)
    assert weights_problem(tmp_path, [newer]) is None


# --- Checks, without a hub


def test_nothing_fetched_is_a_problem_with_the_command_to_run(tmp_path: Path):
    problem = weights_problem(tmp_path / "my weights")
    assert problem is not None
    assert problem.code is ErrorCode.MODEL_WEIGHTS_MISSING
    assert f"recon weights fetch --folder '{tmp_path}/my weights'" in problem.message
    unset = weights_problem(None)
    assert unset is not None
    assert unset.code is ErrorCode.MODEL_WEIGHTS_MISSING


def test_files_that_were_copied_are_told_from_those_that_are_not_there(tmp_path: Path):
    (tmp_path / MODEL).parent.mkdir(parents=True)
    (tmp_path / MODEL).write_bytes(tensors(0))
    reasons = {each.path: each.problem for each in inventory(tmp_path, [SOURCE])}
    assert reasons == {
        f"{NAME}/config.json": "it was not fetched",
        f"{NAME}/model*.safetensors*": f"it is there, but not in {LOCK_NAME}",
    }


def test_check_finds_what_is_missing_and_what_is_damaged(hub: Hub, tmp_path: Path):
    fetch(hub, tmp_path)
    assert set(states(tmp_path).values()) == {State.PRESENT}
    path = tmp_path / MODEL
    good = path.read_bytes()

    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # a bit of the last number
    assert states(tmp_path)[MODEL] is State.DAMAGED
    assert states(tmp_path, fast=True)[MODEL] is State.PRESENT, "fast does not read files through"
    path.write_bytes(b"\xff" * 8 + good[8:])  # a header that has no end
    assert states(tmp_path, fast=True)[MODEL] is State.DAMAGED
    path.write_bytes(good[:-4])
    assert states(tmp_path, fast=True)[MODEL] is State.DAMAGED
    assert "damaged" in str(inventory(tmp_path, [SOURCE]))
    path.unlink()
    assert states(tmp_path)[MODEL] is State.MISSING
    with pytest.raises(ModelError) as caught:
        require(tmp_path, check_weights(tmp_path, [SOURCE]))
    assert caught.value.code is ErrorCode.MODEL_WEIGHTS_MISSING


def test_fetch_repairs_what_is_damaged_and_nothing_else(hub: Hub, tmp_path: Path):
    fetch(hub, tmp_path)
    path = tmp_path / MODEL
    path.write_bytes(path.read_bytes()[::-1])
    hub.requests.clear()
    fetch(hub, tmp_path)
    assert path.read_bytes() == content(hub)
    assert [each.path.rsplit("/", 1)[1] for each in hub.downloads()] == ["model.safetensors"]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"version": 2}',
        '{"repositories": {"a": {"revision": "x", "files": {"../b": {"size": 1, "sha256": "%s"}}}}}'
        % ("0" * 64),
        "[" * 200_000,
    ],
)
def test_a_damaged_lock_is_refused(tmp_path: Path, text: str):
    (tmp_path / LOCK_NAME).write_text(text)
    with pytest.raises(ReconError) as caught:
        read_lock(tmp_path)
    assert caught.value.code is ErrorCode.MODEL_WEIGHTS_INVALID
    assert f"Remove {tmp_path / LOCK_NAME} and run: recon weights fetch" in caught.value.message
    problem = weights_problem(tmp_path)
    assert problem is not None
    assert problem.code is ErrorCode.MODEL_WEIGHTS_INVALID, "nothing is missing"


def test_a_damaged_lock_is_repaired_as_it_is_told(hub: Hub, tmp_path: Path):
    lock = fetch(hub, tmp_path)
    (tmp_path / LOCK_NAME).write_text("{")
    with pytest.raises(ModelError, match="Remove"):
        fetch(hub, tmp_path)
    (tmp_path / LOCK_NAME).unlink()
    hub.requests.clear()
    assert fetch(hub, tmp_path) == lock
    assert [each.path.rsplit("/", 1)[1] for each in hub.downloads()] == ["config.json"], (
        "the hub states no more"
    )


def test_a_folder_in_the_place_of_the_lock_is_a_damaged_lock(tmp_path: Path):
    (tmp_path / LOCK_NAME).mkdir()
    problem = weights_problem(tmp_path)
    assert problem is not None
    assert problem.code is ErrorCode.MODEL_WEIGHTS_INVALID


def test_every_pin_is_a_commit_and_every_checksum_one_of_a_wanted_file():
    for source in SOURCES:
        assert len(source.revision) == 40
        int(source.revision, 16)
        for path, checksum in source.sha256.items():
            assert source.wants(path)
            assert len(checksum) == 64
            int(checksum, 16)


# --- The command


def recon(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process that fails if torch gets imported."""
    program = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['recon', *sys.argv[1:]];"
        "from consumer.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", program, "weights", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def everything() -> dict[str, Repository]:
    repositories = {}
    for seed, source in enumerate(SOURCES):
        files = {
            pattern.replace("model*.safetensors*", "model.safetensors"): b"{}" for pattern in source.files
        }
        files |= {path: tensors(seed, 100) for path in files if path.endswith(".safetensors")}
        repositories[source.repository] = Repository({source.revision: files, "f" * 40: files})
    return repositories


def test_the_command_fetches_checks_and_lists_without_torch(tmp_path: Path):
    with serve(Hub(repositories=everything())) as hub:
        places = {"RECON_WEIGHTS": str(tmp_path), "HF_ENDPOINT": hub.endpoint}
        pinned = recon("fetch", **places)
        assert pinned.returncode == 5, "these are not the published files"
        assert "MODEL_WEIGHTS_INVALID" in pinned.stderr
        fetched = recon("fetch", "--update", **places)
        assert fetched.returncode == 0, fetched.stderr
        assert fetched.stdout.strip() == str(tmp_path)
        offline = recon("fetch", HF_HUB_OFFLINE="1", **places)
        assert offline.returncode == 0, "what is complete needs no hub"
    assert f"downloading and checking {VGGT}/model.safetensors (" in fetched.stderr
    for arguments in (("check",), ("check", "--fast"), ("list",)):
        done = recon(*arguments, RECON_AMQP_URL="oops", **places)
        assert done.returncode == 0, "no setting but the folder matters"
        checked = f"checking {VGGT}/model.safetensors\n" in done.stderr
        assert checked == (arguments[0] == "check")
        for name in (TRELLIS, VGGT, DINOV2):
            assert name in done.stdout

    broken = tmp_path / VGGT / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[::-1])
    done = recon("check", "--json", **places)
    assert done.returncode == 5
    assert "MODEL_WEIGHTS_INVALID" in done.stderr
    bad = [each["path"] for each in json.loads(done.stdout)["files"] if each["state"] != "present"]
    assert bad == [f"{VGGT}/model.safetensors"]
    offline = recon("fetch", HF_HUB_OFFLINE="1", **places)
    assert offline.returncode == 5
    assert "HF_HUB_OFFLINE" in offline.stderr


def test_the_command_prints_a_line_a_file_at_any_width(tmp_path: Path):
    needed = [f"{source.repository}/{pattern}" for source in SOURCES for pattern in source.files]
    for command in ("list", "check"):
        done = recon(command, "--folder", str(tmp_path), COLUMNS="20", RECON_AMQP_URL="oops")
        lines = done.stdout.splitlines()
        assert [line.split() for line in lines] == [
            ["missing", f"{path}:", "it", "was", "not", "fetched"] for path in needed
        ]


def test_the_command_says_what_to_run_where_nothing_is(tmp_path: Path):
    done = recon("check", "--folder", str(tmp_path))
    assert done.returncode == 5
    assert f"Run: recon weights fetch --folder {tmp_path}" in done.stderr
