"""The S3 store against a real server."""

import os
import socket
from pathlib import Path
from uuid import UUID

import pytest

from pipeline.cancel import CancelToken
from pipeline.ingest import fetch_input, plan_input
from pipeline.publish import publish
from pipeline.record import read_record
from pipeline.settings import Limits, S3Settings
from pipeline.storage import ObjectStore, open_store
from schemas.errors import AccessError, ErrorCode, InvalidJob, JobCancelled, ResourceError
from schemas.jobs import NvdiffrecJob
from schemas.options import NvdiffrecOptions
from schemas.results import Manifest

pytestmark = pytest.mark.storage

SPOT = Path(__file__).resolve().parents[2] / "examples" / "spot-small" / "views"


@pytest.fixture
def settings(s3) -> S3Settings:
    return S3Settings(endpoint_url=s3.endpoint_url, access_key=s3.access_key, secret_key=s3.secret_key)


@pytest.fixture
def store(bucket, settings) -> ObjectStore:
    return open_store(f"s3://{bucket}/some/prefix", settings)


def upload_sample(store: ObjectStore) -> None:
    for path in SPOT.rglob("*.*"):
        store.upload(path, path.relative_to(SPOT).as_posix(), "application/octet-stream")


def test_bytes_come_back_as_they_went(store, tmp_path):
    data = os.urandom(5_000_000)
    (tmp_path / "source").write_bytes(data)
    store.upload(tmp_path / "source", "a/b.bin", "application/octet-stream")
    chunks = []
    assert store.download("a/b.bin", tmp_path / "copy", max_bytes=len(data), on_bytes=chunks.append) == len(
        data
    )
    assert (tmp_path / "copy").read_bytes() == data
    assert len(chunks) > 1
    store.put_bytes("small", b"hello", "text/plain")
    store.put_bytes("empty", b"", "text/plain")
    assert store.get_bytes("small", max_bytes=5) == b"hello"
    assert store.get_bytes("empty", max_bytes=5) == b""
    assert sorted(store.list()) == [("a/b.bin", len(data)), ("empty", 0), ("small", 5)]


def test_keys_with_spaces_and_other_alphabets(store):
    for key in ("ein Bild (1).png", "ü/日本.png", "a+b=c&d.png"):
        store.put_bytes(key, key.encode(), "image/png")
        assert store.get_bytes(key, max_bytes=100) == key.encode()
    assert len(list(store.list())) == 3


def test_a_prefix_does_not_see_its_neighbours(bucket, settings):
    open_store(f"s3://{bucket}/in", settings).put_bytes("a", b"1", "text/plain")
    open_store(f"s3://{bucket}/inputs", settings).put_bytes("b", b"2", "text/plain")
    assert [info.key for info in open_store(f"s3://{bucket}/in", settings).list()] == ["a"]
    assert sorted(info.key for info in open_store(f"s3://{bucket}", settings).list()) == ["in/a", "inputs/b"]


def test_delete_is_idempotent(store):
    store.put_bytes("a", b"1", "text/plain")
    assert [info.key for info in store.list()] == ["a"]
    store.delete("a")
    store.delete("a")
    assert list(store.list()) == []


def test_what_is_missing(store, settings, tmp_path):
    nowhere = open_store("s3://no-such-bucket/x", settings)
    for action in (
        lambda: store.get_bytes("a", max_bytes=1),
        lambda: store.download("a", tmp_path / "x", max_bytes=1),
        lambda: list(nowhere.list()),
        lambda: nowhere.put_bytes("a", b"", "text/plain"),
    ):
        with pytest.raises(AccessError) as caught:
            action()
        assert caught.value.code is ErrorCode.INPUT_NOT_FOUND
    assert list(store.list()) == []
    assert read_record(store) is None


def test_reads_stop_at_their_bounds(store, tmp_path):
    store.put_bytes("a", b"x" * 100, "text/plain")
    for action in (
        lambda: store.get_bytes("a", max_bytes=99),
        lambda: store.download("a", tmp_path / "x", max_bytes=99),
    ):
        with pytest.raises(InvalidJob) as caught:
            action()
        assert caught.value.code is ErrorCode.INPUT_TOO_LARGE
    assert list(tmp_path.iterdir()) == []


def test_wrong_credentials_are_a_failure_without_secrets(bucket, s3):
    wrong = S3Settings(endpoint_url=s3.endpoint_url, access_key=s3.access_key, secret_key="wrong-secret-key")
    with pytest.raises(ResourceError) as caught:
        list(open_store(f"s3://{bucket}", wrong).list())
    text = caught.value.info().model_dump_json()
    assert "wrong-secret-key" not in text
    assert s3.access_key not in text


def test_a_server_that_is_away_is_a_failure_that_a_retry_may_cure():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    away = S3Settings(endpoint_url=f"http://127.0.0.1:{port}", access_key="a", secret_key="b", attempts=2)
    with pytest.raises(ResourceError) as caught:
        list(open_store("s3://recon/in", away).list())
    assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert caught.value.retryable


def test_the_sample_is_planned_and_fetched(store, tmp_path):
    upload_sample(store)
    store.put_bytes("elsewhere/x.bin", b"0" * 1000, "application/octet-stream")
    plan = plan_input(store, NvdiffrecOptions(), Limits())
    assert len(plan.views) == 6
    fetch_input(store, plan, tmp_path, Limits(), threads=4, cancel=CancelToken(), report=lambda *_: None)
    for key in plan.sizes:
        assert (tmp_path / key).read_bytes() == (SPOT / key).read_bytes()
    assert not (tmp_path / "elsewhere").exists()


def test_a_cancel_in_the_middle_of_a_file_stops_its_download(store, tmp_path):
    store.put_bytes("a", b"x" * 4_000_000, "application/octet-stream")
    cancel = CancelToken()

    def on_bytes(size: int) -> None:
        cancel.cancel()
        cancel.check()

    with pytest.raises(JobCancelled):
        store.download("a", tmp_path / "x", max_bytes=5_000_000, on_bytes=on_bytes)
    assert list(tmp_path.iterdir()) == []
    assert store.get_bytes("a", max_bytes=5_000_000)[:1] == b"x"  # the connection is fit for use


def test_a_result_is_published_with_its_media_types(store, s3, bucket, tmp_path):
    (tmp_path / "previews").mkdir()
    (tmp_path / "model.glb").write_bytes(b"glTF")
    (tmp_path / "previews" / "front.png").write_bytes(b"png")
    job = NvdiffrecJob(job_id=UUID(int=3), input="s3://recon/in", output="s3://recon/out")
    manifest = publish(store, tmp_path, job, "normal", threads=2, report=lambda *_: None)
    assert Manifest.model_validate_json(store.get_bytes("manifest.json", max_bytes=10_000)) == manifest
    head = s3.client().head_object(Bucket=bucket, Key="some/prefix/model.glb")
    assert (head["ContentLength"], head["ContentType"]) == (4, "model/gltf-binary")
