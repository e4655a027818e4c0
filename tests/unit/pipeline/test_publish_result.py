import hashlib
import zipfile
from pathlib import Path
from uuid import UUID

import pytest

from pipeline.publish import keep_log, publish
from pipeline.settings import S3Settings
from pipeline.storage import open_store
from schemas.errors import JobCancelled
from schemas.jobs import NvdiffrecJob
from schemas.results import Manifest


def job(**outputs) -> NvdiffrecJob:
    options = {"outputs": outputs}
    return NvdiffrecJob(job_id=UUID(int=1), input="file:///in", output="file:///out", options=options)


@pytest.fixture
def folder(tmp_path) -> Path:
    files = {"model.glb": b"glTF", "textures/a.png": b"png", "quality.json": b"{}", "logs/job.log": b"line\n"}
    for name, data in files.items():
        (tmp_path / "results" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "results" / name).write_bytes(data)
    return tmp_path / "results"


class RecordingStore:
    """A folder store that writes down what is asked of it."""

    def __init__(self, root: Path) -> None:
        self.inner = open_store(f"file://{root}", S3Settings())
        self.calls: list[tuple[str, str]] = []
        self.media_types: dict[str, str] = {}

    def upload(self, path, key, media_type):
        self.calls.append(("upload", key))
        self.media_types[key] = media_type
        self.inner.upload(path, key, media_type)

    def put_bytes(self, key, data, media_type):
        self.calls.append(("put", key))
        self.inner.put_bytes(key, data, media_type)

    def delete(self, key):
        self.calls.append(("delete", key))
        self.inner.delete(key)


def ignore(fraction: float, message: str, metrics: dict[str, float]) -> None:
    pass


def test_the_old_manifest_goes_first_and_the_new_one_comes_last(folder, tmp_path):
    store = RecordingStore(tmp_path / "out")
    manifest = publish(store, folder, job(), "warning", threads=2, report=ignore)
    assert store.calls[0] == ("delete", "manifest.json")
    assert store.calls[-1] == ("put", "manifest.json")
    assert sorted(key for kind, key in store.calls if kind == "upload") == [a.path for a in manifest.files]
    assert Manifest.model_validate_json((tmp_path / "out" / "manifest.json").read_bytes()) == manifest
    assert manifest.quality_status == "warning"


def test_the_manifest_describes_every_file(folder, tmp_path):
    manifest = publish(RecordingStore(tmp_path / "out"), folder, job(), "normal", threads=2, report=ignore)
    assert [a.path for a in manifest.files] == ["logs/job.log", "model.glb", "quality.json", "textures/a.png"]
    for artifact in manifest.files:
        data = (tmp_path / "out" / artifact.path).read_bytes()
        assert artifact.size == len(data)
        assert artifact.sha256 == hashlib.sha256(data).hexdigest()


def test_files_carry_their_media_types(folder, tmp_path):
    store = RecordingStore(tmp_path / "out")
    publish(store, folder, job(), "normal", threads=1, report=ignore)
    assert store.media_types["model.glb"] == "model/gltf-binary"
    assert store.media_types["textures/a.png"] == "image/png"
    assert store.media_types["quality.json"] == "application/json"
    assert store.media_types["logs/job.log"].startswith("text/plain")


def test_the_archive_holds_everything_but_itself(folder, tmp_path):
    for _ in range(2):  # the second time an archive lies there already
        manifest = publish(
            RecordingStore(tmp_path / "out"), folder, job(zip=True), "normal", threads=1, report=ignore
        )
    with zipfile.ZipFile(tmp_path / "out" / "result.zip") as archive:
        assert sorted(archive.namelist()) == ["logs/job.log", "model.glb", "quality.json", "textures/a.png"]
        assert archive.read("model.glb") == b"glTF"
    assert "result.zip" in [a.path for a in manifest.files]


def test_publishing_twice_gives_the_same_keys(folder, tmp_path):
    first = publish(RecordingStore(tmp_path / "out"), folder, job(), "normal", threads=1, report=ignore)
    (folder / "model.glb").write_bytes(b"another model")
    second = publish(RecordingStore(tmp_path / "out"), folder, job(), "normal", threads=1, report=ignore)
    assert [a.path for a in first.files] == [a.path for a in second.files]
    assert (tmp_path / "out" / "model.glb").read_bytes() == b"another model"


def test_a_cancel_while_uploading_leaves_no_manifest(folder, tmp_path):
    publish(RecordingStore(tmp_path / "out"), folder, job(), "normal", threads=1, report=ignore)

    def cancel(fraction: float, message: str, metrics: dict[str, float]) -> None:
        raise JobCancelled

    with pytest.raises(JobCancelled):
        publish(RecordingStore(tmp_path / "out"), folder, job(), "normal", threads=1, report=cancel)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_log_of_a_failure_replaces_a_result_that_is_no_longer_true(folder, tmp_path):
    store = RecordingStore(tmp_path / "out")
    publish(store, folder, job(), "normal", threads=1, report=ignore)
    (tmp_path / "job.log").write_text("it went wrong")
    keep_log(store, tmp_path / "job.log")
    assert (tmp_path / "out" / "logs" / "job.log").read_text() == "it went wrong"
    assert not (tmp_path / "out" / "manifest.json").exists()
