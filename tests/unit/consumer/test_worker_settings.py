"""Settings: precedence, lists, secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumer.settings import Settings, load_settings, mask_url
from schemas.errors import InvalidJob


def test_defaults_suit_one_machine():
    settings = Settings()
    assert settings.amqp_url.get_secret_value() == "amqp://guest:guest@localhost:5672/"
    assert settings.wanted_models is None
    assert settings.pipeline().models is None
    assert settings.pipeline().allowed_inputs == settings.pipeline().allowed_outputs == ("s3://recon",)
    assert settings.s3().endpoint_url is None
    assert settings.worker_id


def test_a_flag_goes_before_the_environment_and_the_environment_before_the_default(monkeypatch):
    monkeypatch.setenv("RECON_WORKER_ID", "from-environment")
    assert load_settings().worker_id == "from-environment"
    assert load_settings(worker_id=None).worker_id == "from-environment"
    assert load_settings(worker_id="from-flag").worker_id == "from-flag"


def test_lists_are_separated_by_commas(monkeypatch):
    monkeypatch.setenv("RECON_ALLOWED_INPUTS", "s3://one, s3://two/x,")
    monkeypatch.setenv("RECON_MODELS", "reconviagen,nvdiffrec")
    settings = load_settings()
    assert settings.pipeline().allowed_inputs == ("s3://one", "s3://two/x")
    assert settings.wanted_models == settings.pipeline().models == ("nvdiffrec", "reconviagen")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODELS", "magic"),
        ("MODELS", ""),
        ("MODELS", "auto,nvdiffrec"),
        ("MIN_GPU_MEMORY_GIB", "-1"),
        ("MIN_GPU_MEMORY_GIB", "inf"),
        ("ALLOWED_INPUTS", "no location"),
        ("MAX_ATTEMPTS", "0"),
        ("DEVICE", "abacus"),
        ("HEARTBEAT_S", "never"),
        ("OUTPUT_PREFIX", "http://x"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(monkeypatch, name: str, value: str):
    monkeypatch.setenv(f"RECON_{name}", value)
    with pytest.raises(InvalidJob, match=f"RECON_{name}"):
        load_settings()


def test_no_secret_shows_in_any_representation(monkeypatch):
    monkeypatch.setenv("RECON_AMQP_URL", "amqp://me:hush@broker:5672/vhost")
    monkeypatch.setenv("RECON_S3_SECRET_KEY", "quiet")
    settings = load_settings()
    shown = f"{settings!r} {settings} {settings.masked_amqp_url} {settings.s3()!r} {settings.pipeline()!r}"
    assert "hush" not in shown
    assert "quiet" not in shown
    assert settings.masked_amqp_url == "amqp://me:***@broker:5672/vhost"
    assert settings.s3().secret_key == "quiet"


def test_a_wrong_secret_is_not_repeated_in_the_error(monkeypatch):
    monkeypatch.setenv("RECON_S3_PATH_STYLE", "hush")
    with pytest.raises(InvalidJob) as caught:
        load_settings()
    assert "hush" not in str(caught.value)


def test_a_url_without_a_password_is_shown_as_it_is():
    assert mask_url("amqp://localhost/") == "amqp://localhost/"


@pytest.mark.parametrize(
    "url",
    [
        "amqp://me:hush/hush@broker/",
        "amqp://me:12/hush@broker/",
        "amqp://me:hush#hush@broker/",
        "amqp://me:1#hush@broker/",
        "amqp://me:hush?hush@broker/",
        "amqp://me:1?hush@broker/",
        "amqp://me:hush@hush@broker/",
        "http://me:hush@broker/",
        "me:hush@broker",
        "amqp://me:hush@/",
        "amqp://me:hush@broker:hush/",
        "amqp://me:hush@broker:99999/",
        "amqp://[hush/",
        "hush",
        "",
    ],
)
def test_a_wrong_address_of_the_broker_is_refused_and_never_repeated(monkeypatch, url: str):
    monkeypatch.setenv("RECON_AMQP_URL", url)
    with pytest.raises(InvalidJob, match=r"RECON_AMQP_URL: .*amqps") as caught:
        load_settings()
    assert "hush" not in str(caught.value)
    assert "hush" not in mask_url(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://me:a%2Fb%40c@broker/v", "amqp://me:***@broker/v"),
        ("amqp://me:hu\nsh@broker/", "amqp://me:***@broker/"),
        ("amqps://broker:5671/?password=hush", "amqps://broker:5671/?***"),
        ("amqp://me:hush@broker/?heartbeat=3&password=hush", "amqp://me:***@broker/?***"),
        ("amqp://me@[::1]:5672/", "amqp://me@[::1]:5672/"),
    ],
)
def test_a_right_address_is_shown_without_its_password(monkeypatch, url: str, shown: str):
    monkeypatch.setenv("RECON_AMQP_URL", url)
    assert load_settings().masked_amqp_url == shown


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Settings().work_root = Path("/")  # type: ignore[misc]
