import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.errors import CODES, ErrorCode, InvalidJob
from schemas.jobs import MAX_JSON_DEPTH, MAX_MESSAGE_BYTES, load_json, parse_job, read_job_id
from schemas.locations import Location, parse_location
from schemas.options import QualityOptions

JOB = {"model": "nvdiffrec", "input": "s3://recon/in", "output": "s3://recon/out"}


def parse(**changes):
    return parse_job(json.dumps(JOB | changes).encode())


def test_a_job_survives_the_wire():
    job = parse(metadata={"order": [1, {"a": None}]}, created_at="2026-01-31T12:00:00.123456+02:00")
    again = parse_job(job.model_dump_json().encode())
    assert again == job
    assert again.created_at.isoformat() == "2026-01-31T10:00:00.123456+00:00"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"schema_version": "2.0"}, "UNSUPPORTED_SCHEMA_VERSION"),
        ({"schema_version": None}, "UNSUPPORTED_SCHEMA_VERSION"),
        ({"model": "magic"}, "UNKNOWN_MODEL"),
        ({"model": ["nvdiffrec"]}, "UNKNOWN_MODEL"),
        ({"options": {"seed": -1}}, "INVALID_OPTIONS"),
        ({"options": {"color": "red"}}, "INVALID_OPTIONS"),
        ({"options": {"structure_steps": 3}}, "INVALID_OPTIONS"),  # the other model's
        ({"options": {"quality": {"psnr_normal_db": 20, "psnr_warning_db": 25}}}, "INVALID_OPTIONS"),
        ({"priority": 9}, "INVALID_MESSAGE"),
        ({"input": "http://recon/in"}, "INVALID_MESSAGE"),
        ({"created_at": "2026-01-31T12:00:00"}, "INVALID_MESSAGE"),  # in which zone?
        ({"time_limit_s": 0}, "INVALID_MESSAGE"),
        ({"metadata": {"a": {"b": {"c": {"d": {"e": 1}}}}}}, "INVALID_MESSAGE"),
        ({"job_id": "42"}, "INVALID_MESSAGE"),
    ],
)
def test_every_fault_of_a_job_has_its_code_and_names_the_field(changes, code):
    with pytest.raises(InvalidJob) as error:
        parse(**changes)
    assert error.value.code == code
    if code in ("INVALID_OPTIONS", "INVALID_MESSAGE"):
        assert next(iter(changes)) in error.value.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "JSON"),
        (b"[]", "object"),
        (b"\xff\xfe", "JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": "\\ud800"}', "surrogates"),
        (b"[" * 40 + b"]" * 40, "levels deep"),
        (b" " * (MAX_MESSAGE_BYTES + 1), "bytes"),
        (b"1" * 5000, "JSON"),
    ],
)
def test_broken_or_hostile_bytes_are_refused_in_words(body, words):
    with pytest.raises(InvalidJob, match=words) as error:
        parse_job(body)
    assert error.value.code is ErrorCode.INVALID_MESSAGE
    assert read_job_id(body) is None


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(body):
    with pytest.raises(InvalidJob):
        parse_job(body)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
)
def test_bounded_json_reads_what_json_reads(value):
    text = json.dumps(value)
    try:
        assert load_json(text.encode()) == json.loads(text)
    except ValueError:
        assert text.count("[") + text.count("{") > MAX_JSON_DEPTH or "\\ud" in text


@pytest.mark.parametrize(
    "text",
    [
        "s3://",
        "s3://ab/x",
        "s3://UPPER/x",
        "s3://recon/../x",
        "s3://recon/a//b",
        "s3://recon/a/./b",
        "s3://recon/a\\b",
        "s3://recon/a\nb",
        "s3://recon/" + "a" * 1100,
        "file://relative/x",
        "file:///a/../b",
        "file:///a/%2e%2e/b",
        "https://recon/x",
        "",
    ],
)
def test_locations_that_could_be_read_in_two_ways_are_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_location(text)


def test_locations_come_apart_and_together_again():
    assert parse_location("s3://recon/a/b/") == Location("s3", "recon", "a/b")
    assert str(parse_location("s3://recon/a").child("x.png")) == "s3://recon/a/x.png"
    assert str(parse_location("s3://recon").child("x.png")) == "s3://recon/x.png"
    assert parse_location("file:///data/my%20folder").prefix == "/data/my folder"


def test_errors_cross_a_pipe_whole():
    error = InvalidJob(ErrorCode.INVALID_IMAGE, "broken", file="a.png", rule="must decode")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.info()) == (InvalidJob, error.info())
    assert again.info().details == {"file": "a.png", "rule": "must decode"}


def test_every_code_is_described():
    assert set(CODES) == set(ErrorCode)


def test_thresholds_may_be_equal_but_not_turned_round():
    QualityOptions(psnr_normal_db=20, psnr_warning_db=20, depth_error_normal=0.1, depth_error_warning=0.1)
    with pytest.raises(ValidationError, match="depth_error"):
        QualityOptions(depth_error_normal=0.2, depth_error_warning=0.1)
