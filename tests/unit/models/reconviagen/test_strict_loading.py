"""Published tensors become parameters: each once, in the right precision, from one file or from shards."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.layers.precision import MixedPrecision
from models.reconviagen.renaming import DINOV2, SAME, Renaming
from models.reconviagen.strict_loading import build, fill
from models.reconviagen.tensor_files import open_tensors
from models.reconviagen.weights_folder import inside
from schemas.errors import ErrorCode, ModelError


class Small(MixedPrecision):
    """A torso, an end, a buffer that is saved and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)
        self.end = nn.Linear(4, 2)
        self.register_buffer("places", torch.arange(3.0))
        self.register_buffer("computed", torch.arange(5.0), persistent=False)

    def torso(self) -> tuple[nn.Module]:
        return (self.body,)


RENAMED = Renaming(
    names=((r"head\.", "end."),),
    joined=(((r"body\.first\.", r"body\.second\."), "body."),),
    ignored=("unused.",),
)


def state() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in Small().state_dict().items()}


def load(root: Path, precision: torch.dtype = torch.float32, renaming: Renaming = SAME) -> Small:
    network = build(Small, precision)
    with open_tensors(root, "net") as tensors:
        fill(network, tensors, renaming)
    return network


def refused(root: Path, renaming: Renaming = SAME) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(root, renaming=renaming)
    return caught.value


def write_shards(root: Path, tensors: dict[str, Tensor], index: dict[str, str] | None = None) -> None:
    names = list(tensors)
    places = {name: f"net-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, root / file)
    content = {"metadata": {"total_size": 1}, "weight_map": places if index is None else {**places, **index}}
    (root / "net.safetensors.index.json").write_text(json.dumps(content))


# --- What is right


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_arrive_in_the_networks_precision(
    tmp_path: Path, stored: torch.dtype, precision: torch.dtype
):
    tensors = {name: tensor.to(stored) for name, tensor in state().items()}
    save_file(tensors, tmp_path / "net.safetensors")
    network = load(tmp_path, precision)
    assert network.dtype == network.body.weight.dtype == precision
    assert network.end.weight.dtype == network.places.dtype == torch.float32
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, tensors[name].to(tensor.dtype)), name
    assert torch.equal(network.computed, torch.arange(5.0)), "what no file holds keeps its value"
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training


def test_a_loaded_network_does_not_depend_on_its_file(tmp_path: Path):
    tensors = state()
    save_file(tensors, tmp_path / "net.safetensors")
    network = load(tmp_path)
    (tmp_path / "net.safetensors").write_bytes(b"\0" * 1000)
    assert torch.equal(network.body.weight, tensors["body.weight"])


def test_building_leaves_parameters_without_values():
    network = build(Small, torch.bfloat16)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert network.body.weight.dtype == torch.bfloat16


def test_shards_are_read_through_their_index(tmp_path: Path):
    tensors = state()
    write_shards(tmp_path, tensors)
    network = load(tmp_path)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())


def test_names_are_changed_parts_joined_and_the_unused_left_out(tmp_path: Path):
    tensors = state()
    weight, bias = tensors.pop("body.weight"), tensors.pop("body.bias")
    tensors |= {"body.second.weight": weight[2:].clone(), "body.first.weight": weight[:2].clone()}
    tensors |= {"body.second.bias": bias[2:].clone(), "body.first.bias": bias[:2].clone()}
    tensors |= {name.replace("end.", "head."): tensors.pop(name) for name in ("end.weight", "end.bias")}
    save_file(tensors | {"unused.weight": torch.ones(3)}, tmp_path / "net.safetensors")
    network = load(tmp_path, renaming=RENAMED)
    assert torch.equal(network.body.weight, weight)
    assert torch.equal(network.body.bias, bias)
    assert torch.equal(network.end.weight, tensors["head.weight"])


def test_queries_keys_and_values_of_hugging_face_become_one():
    layer = "encoder.layer.3.attention.attention"
    names = [f"{layer}.{part}.weight" for part in ("value", "query", "key")]
    assert DINOV2.sources([*names, "embeddings.mask_token", "layernorm.bias"]) == {
        "blocks.3.attn.qkv.weight": tuple(f"{layer}.{part}.weight" for part in ("query", "key", "value")),
        "norm.bias": ("layernorm.bias",),
    }


# --- What is refused


def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path: Path):
    tensors = state()
    tensors["end.scale"] = tensors.pop("end.bias")
    save_file(tensors, tmp_path / "net.safetensors")
    error = refused(tmp_path)
    assert error.code is ErrorCode.MODEL_WEIGHTS_INVALID
    assert "lacks end.bias" in error.message
    assert "end.scale" in error.message
    tensors["end.bias"] = tensors.pop("end.scale")[:1]
    save_file(tensors, tmp_path / "net.safetensors")
    assert "end.bias ([1], not [2])" in refused(tmp_path).message


def test_a_part_that_is_missing_is_named(tmp_path: Path):
    tensors = state()
    tensors["body.first.weight"] = tensors.pop("body.weight")[:2].clone()
    tensors["body.first.bias"] = tensors.pop("body.bias")[:2].clone()
    save_file(tensors, tmp_path / "net.safetensors")
    assert "lacks body.weight, body.bias" in refused(tmp_path, RENAMED).message


def test_two_tensors_for_one_place_are_refused(tmp_path: Path):
    tensors = state()
    save_file(tensors | {"head.bias": tensors["end.bias"].clone()}, tmp_path / "net.safetensors")
    error = refused(tmp_path, RENAMED)
    assert "holds, and should not, head.bias" in error.message or "should not, end.bias" in error.message


def test_many_wrong_names_are_counted(tmp_path: Path):
    save_file(state() | {f"x{i:02}": torch.ones(1) for i in range(20)}, tmp_path / "net.safetensors")
    assert "x07 and 12 more" in refused(tmp_path).message


def test_integers_are_no_weights(tmp_path: Path):
    save_file(state() | {"end.bias": torch.ones(2, dtype=torch.int64)}, tmp_path / "net.safetensors")
    assert "end.bias as I64" in refused(tmp_path).message


def test_pickles_are_refused(tmp_path: Path):
    (tmp_path / "net.safetensors").write_bytes(pickle.dumps({"end.bias": [1.0]}))
    assert "is no safetensors file" in refused(tmp_path).message
    (tmp_path / "net.safetensors").unlink()
    (tmp_path / "net.bin").write_bytes(pickle.dumps({}))
    error = refused(tmp_path)
    assert error.code is ErrorCode.MODEL_WEIGHTS_MISSING
    assert f"recon weights fetch --folder {tmp_path}" in error.message


def test_a_file_cut_short_is_refused(tmp_path: Path):
    save_file(state(), tmp_path / "net.safetensors")
    data = (tmp_path / "net.safetensors").read_bytes()
    (tmp_path / "net.safetensors").write_bytes(data[:-8])
    assert refused(tmp_path).code is ErrorCode.MODEL_WEIGHTS_INVALID


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"end.bias": "../net-00001-of-00002.safetensors"}, "names the path"),
        ({"end.bias": "/etc/passwd.safetensors"}, "names the path"),
        ({"end.bias": "pytorch_model-00001-of-00002.bin"}, "asks for the file"),
        ({"end.extra": "net-00003-of-00002.safetensors"}, "lack net-00003-of-00002"),
        ({"end.extra": "net-00001-of-00002.safetensors"}, "lists end.extra"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, index: dict[str, str], words: str):
    write_shards(tmp_path, state(), index)
    assert words in refused(tmp_path).message


def test_an_index_lists_all_tensors(tmp_path: Path):
    write_shards(tmp_path, state())
    path = tmp_path / "net.safetensors.index.json"
    content = json.loads(path.read_text())
    del content["weight_map"]["end.bias"]
    path.write_text(json.dumps(content))
    assert "does not list end.bias" in refused(tmp_path).message


@pytest.mark.parametrize("path", ["", "..", "a/../b", "/a", "a\\..\\b", "c:/a", "a\0b"])
def test_paths_stay_in_their_folder(path: str):
    with pytest.raises(ModelError):
        inside("pipeline.json", path)
