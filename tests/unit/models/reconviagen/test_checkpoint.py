"""Checkpoints in the published layout are read as they are, and refused where they are anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import MINIATURE, PUBLISHED, STEMS, pipeline_json, write_checkpoint
from torch import nn

from models.reconviagen.checkpoint import DINOV2_FIXED, KINDS, Checkpoint, Part
from models.reconviagen.sampler import SamplerConfig
from models.reconviagen.strict_loading import build
from models.reconviagen.vit import VisionTransformer, VitConfig
from models.reconviagen.weights_folder import DINOV2, MAX_JSON_BYTES, TRELLIS, VGGT
from pipeline.weights import SOURCES, weights_problem
from schemas.errors import ErrorCode, ModelError

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Part, nn.Module]]:
    root = tmp_path_factory.mktemp("weights")
    return root, write_checkpoint(root, shards=3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path)
    return tmp_path


def edit(path: Path, change: Edit) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refused(root: Path, part: Part = Part.STRUCTURE_FLOW) -> ModelError:
    with pytest.raises(ModelError) as caught:
        Checkpoint.read(root).load(part)
    return caught.value


# --- What is right


def test_pipeline_json_says_how_to_sample(written: tuple[Path, dict[Part, nn.Module]]):
    checkpoint = Checkpoint.read(written[0])
    common = {"interval": (0.5, 1.0), "rescale_t": 3.0, "sigma_min": 1e-5}
    assert checkpoint.structure_sampler == SamplerConfig(steps=30, guidance=7.5, **common)
    assert checkpoint.latent_sampler == SamplerConfig(steps=12, guidance=3.0, **common)
    statistics = pipeline_json()["args"]["slat_normalization"]
    assert list(checkpoint.normalization.mean) == statistics["mean"]
    assert list(checkpoint.normalization.std) == statistics["std"]


@pytest.mark.parametrize("part", Part)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_network_is_the_one_that_was_written(
    written: tuple[Path, dict[Part, nn.Module]], part: Part, precision: torch.dtype
):
    root, networks = written
    network = Checkpoint.read(root).load(part, precision)
    expected = networks[part].state_dict()
    found = network.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name
    assert precision in {tensor.dtype for tensor in found.values()}
    assert network.dtype == precision


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16, torch.float32])
def test_checkpoints_of_every_dtype_are_read(tmp_path: Path, half: torch.dtype):
    networks = write_checkpoint(tmp_path, half=half, seed=1)
    network = Checkpoint.read(tmp_path).load(Part.LATENT_CONDITION)
    expected = networks[Part.LATENT_CONDITION].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


def test_a_written_folder_counts_as_fetched(written: tuple[Path, dict[Part, nn.Module]]):
    assert weights_problem(written[0]) is None


def test_what_is_fetched_is_what_is_read(root: Path):
    """The two tables of files, that of the loader and that of the download, agree."""
    read = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.parent != root}
    wanted = {
        f"{source.repository}/{pattern.replace('model*.safetensors*', 'model.safetensors')}"
        for source in SOURCES
        for pattern in source.files
    }
    assert read == wanted


# What others counted in the files that microsoft/TRELLIS-image-large publishes under the same configurations.
COUNTS = {
    Part.STRUCTURE_FLOW: (489, 559_737_864),
    Part.STRUCTURE_DECODER: (74, 73_671_201),
    Part.LATENT_FLOW: (526, 600_432_520),
    Part.MESH_DECODER: (120, 90_926_693),
}


@pytest.mark.parametrize("part", COUNTS)
def test_full_networks_have_as_many_tensors_and_numbers_as_the_published_files(part: Part):
    _, kind = KINDS[part]
    network = build(lambda: kind.network(kind.config(**PUBLISHED[part])), torch.float16)
    tensors = network.state_dict().values()
    assert (len(tensors), sum(tensor.numel() for tensor in tensors)) == COUNTS[part]


def test_the_full_vision_transformer_has_as_many_tensors_and_numbers_as_dinov2s_file():
    network = build(lambda: VisionTransformer(VitConfig()), torch.float32)
    tensors = network.state_dict().values()
    mask_token = 1024  # the only one that is left out
    assert (len(tensors) + 1, sum(tensor.numel() for tensor in tensors) + mask_token) == (344, 304_372_736)


# --- What is refused


def test_nothing_there_names_the_command(tmp_path: Path):
    with pytest.raises(ModelError) as caught:
        Checkpoint.read(tmp_path)
    assert caught.value.code is ErrorCode.MODEL_WEIGHTS_MISSING
    assert f"recon weights fetch --folder {tmp_path}" in caught.value.message


@pytest.mark.parametrize("part", Part)
def test_a_missing_file_is_named(root: Path, part: Part):
    stem = Checkpoint.read(root).stems[part]
    (root / f"{stem}.safetensors").unlink()
    error = refused(root, part)
    assert error.code is ErrorCode.MODEL_WEIGHTS_MISSING
    assert error.details["file"] == f"{stem}.safetensors"


def args(change: Edit) -> Edit:
    return lambda content: change(content["args"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("args"), "args"),
        (args(lambda a: a["models"].pop("slat_decoder_mesh")), "names no slat_decoder_mesh"),
        (args(lambda a: a["models"].update(slat_flow_model="../../../etc/passwd")), "names the path"),
        (args(lambda a: a["models"].update(slat_flow_model="/etc/passwd")), "names the path"),
        (args(lambda a: a["models"].update(slat_flow_model=7)), "models.slat_flow_model"),
        (args(lambda a: a["slat_sampler"].update(name="os.system")), "slat_sampler.name"),
        (args(lambda a: a["slat_sampler"]["params"].update(eta=1)), "slat_sampler.params.eta"),
        (args(lambda a: a["slat_sampler"]["params"].update(steps=0)), "slat_sampler.params.steps"),
        (args(lambda a: a["slat_sampler"]["args"].update(sigma_min="x")), "slat_sampler.args.sigma_min"),
        (args(lambda a: a["slat_normalization"].update(std=[1.0])), "slat_normalization"),
        (args(lambda a: a["slat_normalization"].update(std=[0.0] * 8)), "slat_normalization"),
        (args(lambda a: a.update(image_cond_model="dinov2_vitg14")), "image_cond_model"),
    ],
)
def test_a_wrong_pipeline_json_is_refused(root: Path, change: Edit, words: str):
    edit(root / TRELLIS / "pipeline.json", change)
    error = refused(root)
    assert error.code is ErrorCode.MODEL_WEIGHTS_INVALID
    assert words in error.message
    assert error.details["file"] == f"{TRELLIS}/pipeline.json"


@pytest.mark.parametrize(
    "text",
    ["[1]", "{", "\xff", "[" * 100_000, '{"args": NaN}', " " * (MAX_JSON_BYTES + 1)],
    ids=["array", "cut", "binary", "deep", "nan", "large"],
)
def test_json_is_bounded(root: Path, text: str):
    (root / TRELLIS / "pipeline.json").write_bytes(text.encode("latin-1"))
    assert refused(root).code is ErrorCode.MODEL_WEIGHTS_INVALID


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(name="SLatFlowModel"), "names the class 'SLatFlowModel'"),
        (lambda c: c.update(name="builtins.eval"), "names the class"),
        (lambda c: c.pop("args"), "has no args"),
        (args(lambda a: a.update(temperature=1, alpha=2)), "unknown arguments: alpha, temperature"),
        (args(lambda a: a.pop("model_channels")), "model_channels"),
        (args(lambda a: a.update(num_blocks="many")), "num_blocks"),
        (args(lambda a: a.update(pe_mode="rope")), "pe_mode"),
        (args(lambda a: a.update(num_blocks=3)), "lacks"),
        (args(lambda a: a.update(num_blocks=1)), "should not"),
        (args(lambda a: a.update(in_channels=4, out_channels=4)), "in another shape"),
    ],
)
def test_a_wrong_description_of_a_network_is_refused(root: Path, change: Edit, words: str):
    edit(root / TRELLIS / f"{STEMS[Part.STRUCTURE_FLOW]}.json", change)
    error = refused(root)
    assert error.code is ErrorCode.MODEL_WEIGHTS_INVALID
    assert words in error.message


@pytest.mark.parametrize("entry", ["num_gaussians", "scaling_activation", "lr"])
def test_a_representation_that_lacks_something_is_refused(root: Path, entry: str):
    path = root / TRELLIS / f"{STEMS[Part.GAUSSIAN_DECODER]}.json"
    edit(path, args(lambda a: a["representation_config"].pop(entry)))
    error = refused(root, Part.GAUSSIAN_DECODER)
    assert error.code is ErrorCode.MODEL_WEIGHTS_INVALID
    assert entry in error.message


@pytest.mark.parametrize("name", DINOV2_FIXED)
def test_a_vision_transformer_of_another_kind_is_refused(root: Path, name: str):
    edit(root / DINOV2 / "config.json", lambda c: c.update({name: "other"}))
    assert name in refused(root, Part.DINOV2).message


def test_an_unknown_argument_of_vggt_is_refused(root: Path):
    edit(root / VGGT / "config.json", lambda c: c.update(rope_freq=50))
    assert "unknown arguments: rope_freq" in refused(root, Part.VGGT).message


def test_vggt_may_leave_its_arguments_to_their_defaults(tmp_path: Path):
    """The published file names image size, patch size and width, or nothing at all."""
    write_checkpoint(tmp_path)
    (tmp_path / VGGT / "config.json").write_text("{}")
    assert "lacks" in refused(tmp_path, Part.VGGT).message, "the full network does not fit the small file"
    assert MINIATURE[Part.VGGT]["embed_dim"] == 32
