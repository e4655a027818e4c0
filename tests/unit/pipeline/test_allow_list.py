import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.settings import S3Settings
from pipeline.storage import check_allowed, open_store
from schemas.errors import AccessError, ErrorCode


def refused(location: str, *allowed: str) -> AccessError:
    with pytest.raises(AccessError) as caught:
        check_allowed(location, allowed)
    assert caught.value.code is ErrorCode.LOCATION_NOT_ALLOWED
    assert caught.value.details["rule"]
    return caught.value


@pytest.mark.parametrize(
    ("location", "allowed"),
    [
        ("s3://recon", "s3://recon"),
        ("s3://recon/a/b", "s3://recon"),
        ("s3://recon/in", "s3://recon/in"),
        ("s3://recon/in/a", "s3://recon/in"),
        ("s3://recon/in/a", "s3://recon/in/"),
        ("file:///data/in/a", "file:///data/in"),
        ("file:///data", "file:///"),
    ],
)
def test_locations_below_an_entry_pass(location, allowed):
    check_allowed(location, ("s3://elsewhere", allowed))


@pytest.mark.parametrize(
    ("location", "allowed"),
    [
        ("s3://recon-evil/x", "s3://recon"),
        ("s3://recon/inputs", "s3://recon/in"),
        ("s3://recon/other", "s3://recon/in"),
        ("s3://recon", "s3://recon/in"),
        ("s3://recon/IN/a", "s3://recon/in"),
        ("file:///recon/x", "s3://recon"),
        ("file:///database", "file:///data"),
        ("file:///", "file:///data"),
    ],
)
def test_locations_beside_every_entry_are_refused(location, allowed):
    refused(location, allowed)


def test_an_empty_allow_list_admits_nothing():
    refused("s3://recon/in")


@pytest.mark.parametrize(
    "text",
    ["", "recon/in", "http://host/x", "s3://", "s3://Bad_Bucket/x", "s3://recon/../x", "s3://recon/a\\b"],
)
def test_what_is_no_location_is_refused_with_the_same_code(text):
    refused(text, "s3://recon")
    with pytest.raises(AccessError) as caught:
        open_store(text, S3Settings())
    assert caught.value.code is ErrorCode.LOCATION_NOT_ALLOWED


def test_a_link_does_not_lead_around_the_allow_list(tmp_path):
    (tmp_path / "allowed").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "secret")
    refused(f"file://{tmp_path}/allowed/link/x", f"file://{tmp_path}/allowed")


SEGMENTS = st.lists(
    st.text("ab-.c", min_size=1, max_size=4).filter(lambda s: s not in (".", "..")), max_size=4
)


@settings(deadline=None, max_examples=60)
@given(SEGMENTS, SEGMENTS)
def test_exactly_the_locations_with_the_same_leading_segments_pass(target, allowed):
    location, entry = "/".join(["s3://recon", *target]), "/".join(["s3://recon", *allowed])
    if target[: len(allowed)] == allowed:
        check_allowed(location, (entry,))
    else:
        refused(location, entry)
