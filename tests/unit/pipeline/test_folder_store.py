import errno
import os
from pathlib import Path

import pytest

from pipeline.failures import translated_failures
from pipeline.objects import ObjectInfo
from pipeline.settings import S3Settings
from pipeline.storage import ObjectStore, open_store
from pipeline.transfer import WholeFile
from schemas.errors import AccessError, ErrorCode, InvalidJob, JobCancelled, ReconError, ResourceError


@pytest.fixture
def store(tmp_path) -> ObjectStore:
    (tmp_path / "root").mkdir()
    return open_store(f"file://{tmp_path}/root", S3Settings())


def test_what_is_stored_is_listed_and_read_back(store, tmp_path):
    store.put_bytes("b/c.txt", b"hello", "text/plain")
    (tmp_path / "source").write_bytes(b"x" * 3_000_000)
    store.upload(tmp_path / "source", "a.bin", "application/octet-stream")
    assert list(store.list()) == [ObjectInfo("a.bin", 3_000_000), ObjectInfo("b/c.txt", 5)]
    assert store.get_bytes("b/c.txt", max_bytes=5) == b"hello"
    chunks = []
    assert (
        store.download("a.bin", tmp_path / "copy", max_bytes=3_000_000, on_bytes=chunks.append) == 3_000_000
    )
    assert sum(chunks) == 3_000_000
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "source").read_bytes()


@pytest.mark.parametrize("length", [252, 255])
def test_names_as_long_as_a_file_system_takes_come_and_go(store, tmp_path, length):
    key = "images/" + "n" * length
    store.put_bytes(key, b"12", "text/plain")
    assert list(store.list()) == [ObjectInfo(key, 2)]
    assert store.download(key, tmp_path / ("n" * length), max_bytes=2) == 2
    assert (tmp_path / ("n" * length)).read_bytes() == b"12"


def test_two_files_in_writing_never_share_a_temporary_name(tmp_path):
    with WholeFile(tmp_path / "000.png") as first:
        with WholeFile(tmp_path / "000.png.part") as second, WholeFile(tmp_path / "000.png") as third:
            first.write(b"first")
            second.write(b"second")
            third.write(b"third")
        assert (tmp_path / "000.png").read_bytes() == b"third"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "000.png": b"first",
        "000.png.part": b"second",
    }


def test_a_file_that_cannot_take_its_name_leaves_nothing(store, tmp_path):
    (tmp_path / "root" / "a").mkdir()
    with pytest.raises(ResourceError) as caught:
        store.put_bytes("a", b"1", "text/plain")
    assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["a"]


def test_what_is_still_being_written_is_not_listed(store, tmp_path):
    with WholeFile(tmp_path / "root" / "a") as target:
        target.write(b"1")
        assert list(store.list()) == []
    assert list(store.list()) == [ObjectInfo("a", 1)]


def test_delete_is_idempotent(store):
    store.put_bytes("a", b"1", "text/plain")
    assert [info.key for info in store.list()] == ["a"]
    store.delete("a")
    store.delete("a")
    assert list(store.list()) == []


def test_a_missing_file_or_folder_is_not_found(store, tmp_path):
    missing = open_store(f"file://{tmp_path}/nowhere", S3Settings())
    for action in (
        lambda: store.get_bytes("a", max_bytes=1),
        lambda: store.download("a", tmp_path / "x", max_bytes=1),
        lambda: list(missing.list()),
    ):
        with pytest.raises(AccessError) as caught:
            action()
        assert caught.value.code is ErrorCode.INPUT_NOT_FOUND


def test_a_read_stops_at_its_bound_and_leaves_nothing(store, tmp_path):
    store.put_bytes("a", b"123456", "text/plain")
    for action in (
        lambda: store.get_bytes("a", max_bytes=5),
        lambda: store.download("a", tmp_path / "x", max_bytes=5),
    ):
        with pytest.raises(InvalidJob) as caught:
            action()
        assert caught.value.code is ErrorCode.INPUT_TOO_LARGE
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_cancel_in_the_middle_leaves_no_partial_file(store, tmp_path):
    store.put_bytes("a", b"123456", "text/plain")

    def cancel(size: int) -> None:
        raise JobCancelled

    with pytest.raises(JobCancelled):
        store.download("a", tmp_path / "x", max_bytes=10, on_bytes=cancel)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_links_that_leave_the_folder_are_refused(store, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    for action in (
        lambda: store.get_bytes("link", max_bytes=100),
        lambda: store.put_bytes("link", b"overwritten", "text/plain"),
        lambda: store.delete("link"),
        lambda: list(store.list()),
    ):
        with pytest.raises(AccessError) as caught:
            action()
        assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED
        assert caught.value.details["file"] == "link"
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_linked_folder_that_leaves_is_refused(store, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "root" / "images").symlink_to(tmp_path / "other")
    with pytest.raises(AccessError) as caught:
        list(store.list())
    assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED


def test_links_inside_the_folder_are_followed(store, tmp_path):
    store.put_bytes("a", b"12", "text/plain")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "root" / "a")
    assert list(store.list()) == [ObjectInfo("a", 2), ObjectInfo("b", 2)]


def test_a_pipe_is_not_an_object(store, tmp_path):
    os.mkfifo(tmp_path / "root" / "pipe")
    assert list(store.list()) == []


def test_keys_cannot_leave_the_folder(store):
    for action in (
        lambda: store.get_bytes("../x", max_bytes=1),
        lambda: store.put_bytes("/x", b"", "text/plain"),
        lambda: store.delete("a/../../x"),
    ):
        with pytest.raises(AccessError) as caught:
            action()
        assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED


def test_a_folder_that_cannot_be_made_is_a_storage_failure(store):
    store.put_bytes("a", b"1", "text/plain")
    with pytest.raises(ResourceError) as caught:
        store.put_bytes("a/b", b"1", "text/plain")
    assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE


ACTIONS = {
    "put_bytes": lambda store, source: store.put_bytes("b/c", b"1", "text/plain"),
    "upload": lambda store, source: store.upload(source, "b/c", "text/plain"),
    "delete": lambda store, source: store.delete("a"),
    "get_bytes": lambda store, source: store.get_bytes("a", max_bytes=1),
}


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EACCES, ErrorCode.LOCATION_NOT_ALLOWED),
        (errno.EPERM, ErrorCode.LOCATION_NOT_ALLOWED),
        (errno.EROFS, ErrorCode.LOCATION_NOT_ALLOWED),
        (errno.EIO, ErrorCode.STORAGE_UNAVAILABLE),
        (errno.ENOSPC, ErrorCode.DISK_FULL),
        (errno.EDQUOT, ErrorCode.DISK_FULL),
    ],
)
@pytest.mark.parametrize(
    ("method", "action"),
    [
        ("mkdir", "put_bytes"),
        ("open", "put_bytes"),
        ("replace", "put_bytes"),
        ("mkdir", "upload"),
        ("replace", "upload"),
        ("unlink", "delete"),
        ("open", "get_bytes"),
    ],
)
def test_what_the_file_system_refuses_has_its_code(
    store, tmp_path, monkeypatch, number, code, method, action
):
    (tmp_path / "source").write_bytes(b"1")
    store.put_bytes("a", b"1", "text/plain")

    def refuse(*_, **__):
        raise OSError(number, "refused", str(tmp_path))

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(ReconError) as caught, translated_failures():
        ACTIONS[action](store, tmp_path / "source")
    assert caught.value.code is code
    assert str(tmp_path) not in caught.value.info().model_dump_json()


def test_an_upload_below_a_file_is_a_storage_failure(store, tmp_path):
    store.put_bytes("a", b"1", "text/plain")
    with pytest.raises(ResourceError) as caught:
        store.upload(tmp_path / "root" / "a", "a/b/c", "text/plain")
    assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
