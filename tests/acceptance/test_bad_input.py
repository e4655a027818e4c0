"""Bad input gets a clear error: its own code, the file and the rule; and the worker goes on with the next."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from sample_jobs import QUICK_NVDIFFREC, Files, message, sample

from schemas.errors import ErrorCode
from schemas.events import JobCompleted, JobFailed, JobProgress

pytestmark = [pytest.mark.broker, pytest.mark.storage]


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a huge picture in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def with_transforms(files: Files, change: Callable[[dict], None]) -> None:
    transforms = json.loads(files["transforms.json"])
    change(transforms)
    files["transforms.json"] = json.dumps(transforms).encode()  # json.dumps writes NaN where there is one


# Each takes a good input and spoils it.


def no_images(files: Files) -> None:
    files.clear()


def two_images_only(files: Files) -> None:
    for name in [
        name for name in files if name.endswith(".png") and not name.endswith(("000.png", "001.png"))
    ]:
        del files[name]
    with_transforms(files, lambda transforms: transforms.update(frames=transforms["frames"][:2]))


def truncated_png(files: Files) -> None:
    files["images/002.png"] = files["images/002.png"][:1500]


def text_named_png(files: Files) -> None:
    files["images/002.png"] = b"This is not a picture.\n" * 40


def huge_png_header(files: Files) -> None:
    files["images/002.png"] = png_header(20_000, 20_000)


def resized(files: Files, name: str) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(files[name])).resize((96, 80), Image.Resampling.NEAREST).save(buffer, "PNG")
    files[name] = buffer.getvalue()


def image_of_another_aspect(files: Files) -> None:
    resized(files, "images/002.png")


def depth_of_another_aspect(files: Files) -> None:
    resized(files, "depth/002.png")


def impossible_lens(files: Files) -> None:
    with_transforms(files, lambda transforms: transforms["frames"][2].update(k1=-9.0))


def photographs_without_masks(files: Files) -> None:
    for name in list(files):
        if not name.startswith("images/"):
            del files[name]
            continue
        buffer = io.BytesIO()
        Image.open(io.BytesIO(files[name])).convert("RGB").save(buffer, "PNG")
        files[name] = buffer.getvalue()


def photographs_with_too_little_in_common(files: Files) -> None:
    for name in [name for name in files if not name.startswith("images/")]:
        del files[name]


def missing_frame(files: Files) -> None:
    del files["images/002.png"]


def nan_matrix(files: Files) -> None:
    def spoil(transforms: dict) -> None:
        transforms["frames"][2]["transform_matrix"][0][3] = float("nan")

    with_transforms(files, spoil)


def singular_matrix(files: Files) -> None:
    def spoil(transforms: dict) -> None:
        transforms["frames"][2]["transform_matrix"] = np.zeros((4, 4)).tolist()

    with_transforms(files, spoil)


def path_outside(files: Files) -> None:
    def spoil(transforms: dict) -> None:
        transforms["frames"][2]["file_path"] = "../../etc/passwd"

    with_transforms(files, spoil)


BAD_FILES = [
    (no_images, ErrorCode.INPUT_NOT_FOUND, None),
    (two_images_only, ErrorCode.TOO_FEW_VIEWS, None),
    (truncated_png, ErrorCode.INVALID_IMAGE, "images/002.png"),
    (text_named_png, ErrorCode.UNSUPPORTED_IMAGE_FORMAT, "images/002.png"),
    (huge_png_header, ErrorCode.IMAGE_TOO_LARGE, "images/002.png"),
    (image_of_another_aspect, ErrorCode.VIEW_MISMATCH, "images/002.png"),
    (depth_of_another_aspect, ErrorCode.VIEW_MISMATCH, "depth/002.png"),
    (impossible_lens, ErrorCode.INVALID_CAMERAS, "transforms.json"),
    (photographs_without_masks, ErrorCode.MASK_MISSING, "images/000.png"),
    (photographs_with_too_little_in_common, ErrorCode.CAMERA_ESTIMATION_FAILED, None),
    (missing_frame, ErrorCode.VIEW_MISSING, "images/002.png"),
    (nan_matrix, ErrorCode.INVALID_CAMERAS, "transforms.json"),
    (singular_matrix, ErrorCode.INVALID_CAMERAS, "transforms.json"),
    (path_outside, ErrorCode.PATH_NOT_ALLOWED, "../../etc/passwd"),
]


def refusal(system, job: dict[str, object]) -> JobFailed:
    """Submit a job that must fail, and check what holds for every refusal."""
    system.submit_raw(job)
    event = system.end_of(job["job_id"])
    assert isinstance(event, JobFailed)
    assert event.data.error.retryable is False
    assert event.data.error.message.strip()
    seqs = [each.data.seq for each in system.events_of(job["job_id"])]
    assert seqs == sorted(set(seqs)), "seq strictly increases within a job"
    return event


@pytest.mark.parametrize(("spoil", "code", "file"), BAD_FILES, ids=[case[0].__name__ for case in BAD_FILES])
def test_bad_files_are_refused_with_file_and_rule(system, spoil, code, file):
    files = sample()
    spoil(files)

    event = refusal(system, message(system, system.upload(files)))

    error = event.data.error
    assert error.code == code, error
    assert (event.data.batch_id, event.data.metadata) == ("acceptance", {"from": "test"})
    assert error.details.get("rule"), error
    if file is not None:
        assert file in str(error.details.get("file")), error
        assert file.split("/")[-1] in error.message, error


def test_unknown_model_is_refused_and_kept(system):
    job = message(system, system.upload(sample()), model="sculptor")
    event = refusal(system, job)
    assert event.data.error.code == ErrorCode.UNKNOWN_MODEL
    assert "sculptor" in event.data.error.message
    assert _dead_letter(system, "UNKNOWN_MODEL") == json.dumps(job).encode()


def test_unknown_option_is_refused_and_kept(system):
    job = message(system, system.upload(sample()), options={"gird_resolution": 64})
    event = refusal(system, job)
    assert event.data.error.code == ErrorCode.INVALID_OPTIONS
    assert "gird_resolution" in event.data.error.message
    assert _dead_letter(system, "INVALID_OPTIONS") == json.dumps(job).encode()


@pytest.mark.parametrize("side", ["input", "output"])
def test_bucket_not_on_the_allow_list_is_refused(system, side):
    job = message(system, system.upload(sample())) | {side: "s3://somebody-elses/things"}
    event = refusal(system, job)
    assert event.data.error.code == ErrorCode.LOCATION_NOT_ALLOWED
    assert "somebody-elses" in event.data.error.message
    if side == "output":  # where no record may be written, the message itself is what is left
        assert _dead_letter(system, "LOCATION_NOT_ALLOWED") == json.dumps(job).encode()


@pytest.mark.parametrize("body", [b'{"schema_version": "1.0", "job_id": ', b"\xff\xfe\x00", b"[]"])
def test_malformed_message_goes_to_the_dead_letters_with_its_reason(system, body):
    system.submit_raw(body)

    event = system.broker.wait_for(
        lambda event: isinstance(event, JobFailed) and event.data.job_id is None, 60
    )
    system.events.remove(event)  # the next case waits for its own
    assert event.data.error.code == ErrorCode.INVALID_MESSAGE

    assert _dead_letter(system, "INVALID_MESSAGE") == body


def test_worker_serves_the_next_job_after_a_refusal(system):
    refusal(system, message(system, system.upload({"images/000.png": b"no picture"})))
    job = message(system, system.upload(sample()), options=QUICK_NVDIFFREC)
    system.submit_raw(job)

    assert isinstance(system.end_of(job["job_id"], 180), JobCompleted)
    fractions = [e.data.fraction for e in system.events_of(job["job_id"]) if isinstance(e, JobProgress)]
    assert fractions == sorted(fractions)
    assert system.worker.poll() is None
    assert system.wait_until_empty(system.queue)
    assert system.wait_until_empty(system.dead)


def _dead_letter(system, code: str, timeout_s: float = 20) -> bytes:
    """Take the next dead letter, which must be there for this reason; returns the message."""
    deadline = time.monotonic() + timeout_s
    while (found := system.broker.take(system.dead)) is None:
        assert time.monotonic() < deadline, "there is no dead letter"
        time.sleep(0.1)
    assert found.headers["x-recon-reason"] == code
    return found.body
