"""What S3 may answer, without a server: translation, retries, and no secret in any text."""

import io
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from botocore.response import StreamingBody

from pipeline import storage_s3
from pipeline.cancel import CancelToken
from pipeline.ingest import InputPlan, fetch_input
from pipeline.objects import ObjectStore
from pipeline.settings import Limits, S3Settings
from pipeline.storage import open_store
from schemas.errors import AccessError, ErrorCode, InvalidJob, ReconError, ResourceError

SECRET = "very-secret-value"


def client_error(code: str, status: int) -> ClientError:
    text = f"token {SECRET} https://host/x?X-Amz-Signature={SECRET}"
    return ClientError(
        {"Error": {"Code": code, "Message": text}, "ResponseMetadata": {"HTTPStatusCode": status}},
        "GetObject",
    )


class ScriptedClient:
    """Answers every call from a list: an exception is raised, anything else is returned."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(**_: Any) -> Any:
            self.calls.append(name)
            answer = self.answers.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return call


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage_s3, "wait_random_exponential", lambda **_: lambda _: 0.0)

    def make(*answers: Any) -> tuple[ObjectStore, ScriptedClient]:
        client = ScriptedClient(*answers)
        monkeypatch.setattr(storage_s3, "_make_client", lambda settings: client)
        return open_store("s3://recon/in", S3Settings(attempts=3)), client

    return make


def body(data: bytes, announced: int | None = None) -> dict[str, Any]:
    return {"Body": StreamingBody(io.BytesIO(data), len(data) if announced is None else announced)}


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (client_error("NoSuchKey", 404), AccessError, ErrorCode.INPUT_NOT_FOUND),
        (client_error("NoSuchBucket", 404), AccessError, ErrorCode.INPUT_NOT_FOUND),
        (client_error("404", 404), AccessError, ErrorCode.INPUT_NOT_FOUND),
        (client_error("AccessDenied", 403), AccessError, ErrorCode.LOCATION_NOT_ALLOWED),
        (client_error("403", 403), AccessError, ErrorCode.LOCATION_NOT_ALLOWED),
        (client_error("SignatureDoesNotMatch", 400), ResourceError, ErrorCode.STORAGE_UNAVAILABLE),
        (NoCredentialsError(), ResourceError, ErrorCode.STORAGE_UNAVAILABLE),
    ],
)
def test_answers_are_translated_without_being_tried_again(scripted, error, kind, code):
    store, client = scripted(error)
    with pytest.raises(kind) as caught:
        store.get_bytes("a", max_bytes=10)
    assert caught.value.code is code
    assert client.calls == ["get_object"]
    assert SECRET not in caught.value.info().model_dump_json()


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url=f"http://user:{SECRET}@host"),
        ReadTimeoutError(endpoint_url=f"http://user:{SECRET}@host"),
        client_error("InternalError", 500),
        client_error("SlowDown", 503),
    ],
)
def test_a_store_that_is_away_is_tried_again_within_bounds(scripted, error):
    store, client = scripted(error, error, error, error)
    with pytest.raises(ResourceError) as caught:
        store.get_bytes("a", max_bytes=10)
    assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert caught.value.retryable
    assert len(client.calls) == 3
    assert SECRET not in caught.value.info().model_dump_json()


def test_a_broken_stream_starts_again_from_its_beginning(scripted, tmp_path):
    store, client = scripted(body(b"12", announced=4), body(b"1234"))
    assert store.download("a", tmp_path / "x", max_bytes=10) == 4
    assert (tmp_path / "x").read_bytes() == b"1234"
    assert client.calls == ["get_object", "get_object"]


def test_a_stream_that_starts_again_is_not_counted_twice(scripted, tmp_path):
    answers = (body(b"12", announced=4), body(b"123", announced=4), body(b"1234"))
    store, _ = scripted(*answers)
    sizes: list[int] = []
    store.download("a", tmp_path / "x", max_bytes=4, on_bytes=sizes.append)
    assert sizes == [2, -2, 3, -3, 4]


def test_a_broken_stream_is_no_reason_to_call_an_input_too_large(scripted, tmp_path):
    store, _ = scripted(body(b"123", announced=4), body(b"1234"))
    fractions: list[float] = []
    fetch_input(
        store,
        InputPlan((), 0.001, {"a": 4}),
        tmp_path,
        Limits(max_input_bytes=4),
        threads=1,
        cancel=CancelToken(),
        report=lambda fraction, message, metrics: fractions.append(fraction),
    )
    assert (tmp_path / "a").read_bytes() == b"1234"
    assert fractions[-1] == 1.0


def test_more_bytes_than_announced_are_not_believed(scripted, tmp_path):
    store, _ = scripted({"Body": StreamingBody(io.BytesIO(b"x" * 100), None)})
    with pytest.raises(InvalidJob) as caught:
        store.download("a", tmp_path / "x", max_bytes=10)
    assert caught.value.code is ErrorCode.INPUT_TOO_LARGE
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_was_stored_with_chunk_framing_is_noticed(scripted):
    store, _ = scripted({}, {"ContentLength": 97})
    with pytest.raises(ResourceError) as caught:
        store.put_bytes("a", b"hello", "text/plain")
    assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert "97 bytes" in caught.value.message


def test_a_listing_goes_on_over_pages(scripted):
    store, client = scripted(
        {"Contents": [{"Key": "in/a", "Size": 1}], "IsTruncated": True, "NextContinuationToken": "t"},
        {"Contents": [{"Key": "in/b/c", "Size": 2}], "IsTruncated": False},
    )
    assert [(info.key, info.size) for info in store.list()] == [("a", 1), ("b/c", 2)]
    assert len(client.calls) == 2


def test_deleting_what_is_not_there_is_fine_and_what_is_forbidden_is_not(scripted):
    store, _ = scripted(client_error("NoSuchKey", 404), client_error("403", 403))
    store.delete("a")
    with pytest.raises(AccessError) as caught:
        store.delete("a")
    assert caught.value.code is ErrorCode.LOCATION_NOT_ALLOWED


def test_settings_that_make_no_client_are_a_storage_failure_and_show_no_secret():
    settings = S3Settings(endpoint_url="nonsense", access_key="key", secret_key=SECRET)
    with pytest.raises(ReconError) as caught:
        open_store("s3://recon/in", settings)
    assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
    assert SECRET not in repr(settings) + str(caught.value)
