"""The container files, checked as far as that goes without a container engine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from consumer.settings import ENV_PREFIX, Settings
from consumer.topology import CONSUMER_TIMEOUT_MS

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SECRETS = ("RABBITMQ_PASSWORD", "MINIO_ROOT_PASSWORD", "RECON_S3_SECRET_KEY")


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_images_are_pinned(name):
    service = COMPOSE["services"][name]
    if "build" not in service:
        assert re.search(r":[\w.-]*\d+\.\d+\.\d+|:RELEASE\.\d{4}", service["image"]), service["image"]
        assert "latest" not in service["image"]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_ports_are_open_to_this_machine_only(name):
    for port in COMPOSE["services"][name].get("ports", []):
        assert port.startswith("127.0.0.1:"), port


def test_no_secret_has_a_default():
    text = (ROOT / "docker-compose.yml").read_text()
    for secret in SECRETS:
        uses = re.findall(r"\$\{" + secret + r"([^}]*)\}", text)
        assert uses
        assert all(use.startswith(":?") for use in uses), secret
    example = (ROOT / ".env.example").read_text()
    for secret in SECRETS:
        assert re.search(rf"^{secret}=$", example, re.MULTILINE), (
            "no default that reaches production unnoticed"
        )


def test_every_variable_of_compose_is_in_the_example():
    text = (ROOT / "docker-compose.yml").read_text()
    example = (ROOT / ".env.example").read_text()
    for variable in set(re.findall(r"\$\{(\w+)", text)) - {"MINIO_IMAGE", "MC_IMAGE"}:
        assert re.search(rf"^#?{variable}=", example, re.MULTILINE), variable


@pytest.mark.parametrize("name", ["worker-gpu", "worker-cpu"])
def test_workers_get_settings_that_exist(name):
    known = {f"{ENV_PREFIX}{field.upper()}" for field in Settings.model_fields}
    assert set(COMPOSE["services"][name]["environment"]) <= known
    assert set(re.findall(r"\bRECON_\w+(?==)", DOCKERFILE)) <= known


def parts(volume: str) -> tuple[str, str]:
    """Source and target of a short volume, where no variable is set; an anonymous one has no target."""
    plain = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume)
    source, _, target = plain.partition(":")
    return source, target


def test_mounted_files_exist():
    for name, service in COMPOSE["services"].items():
        for volume in service.get("volumes", []):
            source, target = parts(volume)
            if not target:
                continue  # an anonymous volume
            assert source in COMPOSE["volumes"] or (ROOT / source).is_file(), f"{name}: {volume}"


@pytest.mark.parametrize("name", ["worker-gpu", "worker-cpu"])
def test_workers_share_no_volume(name):
    # A worker sweeps its work folder at start, by process ids that mean nothing in another container.
    shared = [volume for volume in COMPOSE["services"][name]["volumes"] if parts(volume)[1]]
    assert all(volume.endswith(":ro") for volume in shared)
    assert "/var/lib/recon" in COMPOSE["services"][name]["volumes"], "what is written to is its own"


def test_weights_of_the_host_are_read_where_they_are_mounted():
    worker = COMPOSE["services"]["worker-gpu"]
    (volume,) = [each for each in worker["volumes"] if "WEIGHTS_FOLDER" in each]
    target = parts(volume)[1].removesuffix(":ro")
    setting = worker["environment"]["RECON_WEIGHTS"]
    with_folder = re.sub(r"\$\{WEIGHTS_FOLDER:\+([^}]*)\}", r"\1", setting)
    without = re.sub(r"\$\{WEIGHTS_FOLDER:\+[^}]*\}", "", setting)
    (of_image,) = re.findall(r"RECON_WEIGHTS=(\S+)", DOCKERFILE)
    assert (with_folder, without) == (target, of_image)
    assert target != of_image, "an empty mount would hide the weights of an image that has them"


def test_build_targets_exist():
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.MULTILINE))
    for service in COMPOSE["services"].values():
        assert service.get("build", {"target": "gpu"})["target"] in stages


def test_every_stage_that_is_named_exists_whatever_the_arguments():
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.MULTILINE))
    wanted = set(re.findall(r"--from=([\w-]+)|,from=([\w-]+)", DOCKERFILE))
    assert {first or second for first, second in wanted} <= stages
    for argument in ("NVDIFFRAST", "WEIGHTS"):
        (default,) = re.findall(rf"^ARG {argument}=([01])$", DOCKERFILE, re.MULTILINE)
        assert COMPOSE["services"]["worker-gpu"]["build"]["args"][argument] == f"${{{argument}:-{default}}}"
        assert {f"{argument.lower()}-0", f"{argument.lower()}-1"} <= stages
    (hub,) = re.findall(r"^ARG HF_ENDPOINT=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert COMPOSE["services"]["worker-gpu"]["build"]["args"]["HF_ENDPOINT"] == f"${{HF_ENDPOINT:-{hub}}}"


def test_weights_are_fetched_by_the_build_and_never_by_a_worker():
    build, run = DOCKERFILE.split("FROM runtime AS gpu")
    fetch = next(line for line in build.splitlines() if "recon weights fetch" in line)
    assert fetch.strip().startswith("HF_TOKEN_PATH=/run/secrets/"), "a token is a secret, no argument"
    assert "weights fetch" not in run
    assert "HF_HUB_OFFLINE" not in run, "`recon weights fetch` into a volume must work in a container"
    assert "rm -rf /opt/recon/weights/.fetch*" in build, "the lock file of a fetch is no weight"
    (folder,) = re.findall(r"RECON_WEIGHTS=(\S+)", run)
    assert f"COPY --link --from=weights {folder} {folder}" in run
    # Outside of the volume that a worker writes to, in a layer of the image.
    assert not Path(folder).is_relative_to("/var/lib/recon")


def test_copied_files_exist_and_reach_the_build():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for sources in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source


def test_broker_waits_for_acknowledgements_as_long_as_the_queues_do():
    config = (ROOT / "deploy" / "rabbitmq.conf").read_text()
    (timeout,) = re.findall(r"^consumer_timeout = (\d+)$", config, re.MULTILINE)
    assert int(timeout) == CONSUMER_TIMEOUT_MS


def test_image_pins_are_those_of_the_gpu_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    exact = dict(requirement.split("==") for requirement in extras["gpu"])
    docker = pins("constraints-docker.txt")
    assert exact.items() <= docker.items()


def test_both_sets_of_pins_agree_where_they_can():
    cpu, docker = pins("constraints.txt"), pins("constraints-docker.txt")
    differing = {name for name in cpu.keys() & docker.keys() if cpu[name] != docker[name]}
    assert differing <= {"torch"}
