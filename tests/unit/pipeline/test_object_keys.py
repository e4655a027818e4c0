import posixpath
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.objects import check_distinct, check_key
from schemas.errors import AccessError, ErrorCode

REFUSED = [
    "",
    "/etc/passwd",
    "../../etc/passwd",
    "images/../../x",
    "images/..",
    "images//000.png",
    "./images/000.png",
    "images/./000.png",
    "images\\000.png",
    "..\\x",
    "C:/windows/x",
    "c:x",
    "file:///etc/passwd",
    "s3://bucket/x",
    "~/x",
    "images/\x00.png",
    "images/a\nb.png",
    "images/\x85.png",
    "images/\ud800.png",
    "images/",
    "a" * 600,
    "images/" + "a" * 256,
    "a" * 256 + "/000.png",
    "ü" * 128,
    "images/.recon-part-0",
    "images/.Recon-Part-0/000.png",
]


@pytest.mark.parametrize("key", REFUSED)
def test_a_path_that_could_leave_the_prefix_is_refused(key):
    with pytest.raises(AccessError) as caught:
        check_key(key)
    assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED
    assert caught.value.details["rule"]
    assert "file" in caught.value.details
    caught.value.info().model_dump_json()  # a lone surrogate must not break the event


@pytest.mark.parametrize(
    "key",
    [
        "images/000.png",
        "a",
        "images/ein Bild (1).jpg",
        "bilder/ü.png",
        "...",
        "a..b/c",
        "a" * 255 + "/" + "b" * 255,
        "images/.DS_Store",
        "images/000.png.part",
    ],
)
def test_plain_paths_pass(key):
    assert check_key(key) == key


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet=string.ascii_letters + "./\\:~\x00%é ", max_size=30))
@example("....//....//etc")
def test_whatever_passes_stays_below_its_root(key):
    try:
        check_key(key)
    except AccessError:
        return
    joined = posixpath.normpath(posixpath.join("/root", key))
    assert joined.startswith("/root/")
    assert joined == f"/root/{key}"


@pytest.mark.parametrize(
    "keys",
    [
        ["images/a.png", "images/A.png"],
        ["images/e\u0301.png", "images/\u00e9.png"],
        ["images", "images/a.png"],
        ["images/a.png", "IMAGES"],
        ["x/straße", "x/STRASSE"],
    ],
)
def test_names_that_collide_on_some_file_system_are_refused(keys):
    for order in (keys, keys[::-1]):
        with pytest.raises(AccessError) as caught:
            check_distinct(order)
        assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED


def test_distinct_names_pass():
    check_distinct(["images/a.png", "images/b.png", "depth/a.png", "images2"])
