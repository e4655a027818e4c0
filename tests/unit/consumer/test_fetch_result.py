"""Fetching believes nothing that the storage says."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from consumer.fetch import FetchProgress, fetch_result
from pipeline.objects import ObjectStore
from pipeline.record import write_record
from pipeline.storage import open_store
from schemas.base import utc_now
from schemas.errors import AccessError, ErrorCode, ResourceError
from schemas.results import Artifact, JobRecord, Manifest
from tests.unit.consumer.worker_fakes import NO_S3

FILES = {"model.glb": b"glTF" * 100, "previews/0.png": b"png", "empty.txt": b""}


def artifact(path: str, content: bytes, **changes: Any) -> Artifact:
    fields = {
        "path": path,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "media_type": "application/octet-stream",
    }
    return Artifact(**(fields | changes))


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    made = open_store((tmp_path / "store").as_uri(), NO_S3)
    for path, content in FILES.items():
        made.put_bytes(path, content, "application/octet-stream")
    write_manifest(made, [artifact(path, content) for path, content in FILES.items()])
    return made


def write_manifest(store: ObjectStore, files: list[Artifact]) -> None:
    manifest = Manifest(job_id=UUID(int=1), created_at=utc_now(), quality_status="normal", files=files)
    store.put_bytes("manifest.json", manifest.model_dump_json().encode(), "application/json")


def test_every_file_arrives_with_the_manifest(store: ObjectStore, tmp_path: Path):
    seen: list[FetchProgress] = []
    fetch_result(store, tmp_path / "got", seen.append)
    got = {p.relative_to(tmp_path / "got").as_posix() for p in (tmp_path / "got").rglob("*") if p.is_file()}
    assert got == {*FILES, "manifest.json"}
    assert (tmp_path / "got/model.glb").read_bytes() == FILES["model.glb"]
    assert seen[-1].done_bytes == seen[-1].total_bytes == sum(map(len, FILES.values()))


def test_the_record_comes_along(store: ObjectStore, tmp_path: Path):
    record = JobRecord(
        job_id=UUID(int=1),
        model="nvdiffrec",
        input="s3://a-bucket/in",
        output="s3://a-bucket/out",
        state="completed",
        attempt=1,
        worker_id="w",
        last_seq=9,
        created_at=utc_now(),
        accepted_at=utc_now(),
    )
    write_record(store, record)
    fetch_result(store, tmp_path / "got")
    assert JobRecord.model_validate_json((tmp_path / "got/job.json").read_text()) == record


def test_a_result_without_a_manifest_is_not_there(store: ObjectStore, tmp_path: Path):
    store.delete("manifest.json")
    with pytest.raises(AccessError) as caught:
        fetch_result(store, tmp_path / "got")
    assert caught.value.code is ErrorCode.JOB_NOT_FOUND


@pytest.mark.parametrize(
    ("changes", "stored"),
    [
        ({"sha256": "0" * 64}, b"content"),
        ({"size": 3}, b"content"),
        ({"size": 99}, b"content"),
        ({}, b"c0ntent"),
    ],
)
def test_a_file_that_is_not_what_was_uploaded_never_gets_its_name(
    store: ObjectStore, tmp_path: Path, changes: dict[str, Any], stored: bytes
):
    store.put_bytes("a.bin", stored, "application/octet-stream")
    write_manifest(store, [artifact("a.bin", b"content", **changes)])
    with pytest.raises(ResourceError, match=r"'a\.bin' is not what was uploaded"):
        fetch_result(store, tmp_path / "got")
    assert list((tmp_path / "got").iterdir()) == []


@pytest.mark.parametrize(
    "path",
    ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "C:evil", "a//b", "./a", "", "x\x00y", "~/x"],
)
def test_a_manifest_may_not_point_out_of_the_folder(store: ObjectStore, tmp_path: Path, path: str):
    write_manifest(store, [artifact(path, b"x")])
    with pytest.raises(AccessError) as caught:
        fetch_result(store, tmp_path / "deep" / "got")
    assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("path", ["manifest.json", "Manifest.JSON", "job.json"])
def test_a_manifest_may_not_name_itself_or_the_record(store: ObjectStore, tmp_path: Path, path: str):
    write_manifest(store, [artifact(path, b"x")])
    with pytest.raises(AccessError):
        fetch_result(store, tmp_path / "got")


def test_a_link_in_the_folder_may_not_lead_out_of_it(store: ObjectStore, tmp_path: Path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "got").mkdir()
    (tmp_path / "got/previews").symlink_to(tmp_path / "outside")
    with pytest.raises(AccessError):
        fetch_result(store, tmp_path / "got")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_manifest_that_is_none_is_an_error_of_ours(store: ObjectStore, tmp_path: Path):
    store.put_bytes("manifest.json", b'{"files": 3}', "application/json")
    with pytest.raises(ResourceError, match=r"manifest\.json"):
        fetch_result(store, tmp_path / "got")
