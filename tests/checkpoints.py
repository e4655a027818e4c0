"""Checkpoints of reconviagen in the published layout, with random values and of any size.

File names, JSON, parameter names, shards and dtypes are those of the published repositories; the parameters
that inference has no use for are there as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.reconviagen.checkpoint import KINDS, Part
from models.reconviagen.vggt import Vggt, VggtConfig
from models.reconviagen.vit import VisionTransformer, VitConfig
from models.reconviagen.weights_folder import DINOV2, TRELLIS, VGGT
from pipeline.weights import SOURCES
from pipeline.weights_lock import Lock, LockedRepository, measure, write_lock

STEMS = {
    Part.STRUCTURE_CONDITION: "ckpts/ss_vggt_cond",
    Part.STRUCTURE_FLOW: "ckpts/ss_flow_img_dit_L_16l8_fp16",
    Part.STRUCTURE_DECODER: "ckpts/ss_dec_conv3d_16l8_fp16",
    Part.LATENT_CONDITION: "ckpts/slat_vggt_cond",
    Part.LATENT_FLOW: "ckpts/slat_flow_img_dit_L_64l8p2_fp16",
    Part.MESH_DECODER: "ckpts/slat_dec_mesh_swin8_B_64l8m256c_fp16",
    Part.GAUSSIAN_DECODER: "ckpts/slat_dec_gs_swin8_B_64l8gs32_fp16",
}

_FLOW = {"in_channels": 8, "out_channels": 8, "mlp_ratio": 4, "pe_mode": "ape"}
_FLOW |= {"qk_rms_norm": True, "use_fp16": True}
_DECODER = {"latent_channels": 8, "mlp_ratio": 4, "attn_mode": "swin", "window_size": 8, "use_fp16": True}
_GAUSSIANS = {
    "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
    "perturb_offset": True,
    "voxel_size": 1.5,
    "num_gaussians": 32,
    "2d_filter_kernel_size": 0.1,
    "3d_filter_kernel_size": 0.0009,
    "scaling_bias": 0.004,
    "opacity_bias": 0.1,
    "scaling_activation": "softplus",
}

PUBLISHED: dict[Part, dict[str, Any]] = {
    Part.STRUCTURE_FLOW: _FLOW
    | {"resolution": 16, "model_channels": 1024, "cond_channels": 1024, "num_blocks": 24, "num_heads": 16}
    | {"patch_size": 1},
    Part.STRUCTURE_DECODER: {
        "out_channels": 1,
        "latent_channels": 8,
        "num_res_blocks": 2,
        "num_res_blocks_middle": 2,
        "channels": [512, 128, 32],
        "use_fp16": True,
    },
    Part.LATENT_FLOW: _FLOW
    | {"resolution": 64, "model_channels": 1024, "cond_channels": 1024, "num_blocks": 24, "num_heads": 16}
    | {"patch_size": 2, "num_io_res_blocks": 2, "io_block_channels": [128]},
    Part.MESH_DECODER: _DECODER
    | {"resolution": 64, "model_channels": 768, "num_blocks": 12, "num_heads": 12}
    | {"representation_config": {"use_color": True}},
    Part.GAUSSIAN_DECODER: _DECODER
    | {"resolution": 64, "model_channels": 768, "num_blocks": 12, "num_heads": 12}
    | {"representation_config": _GAUSSIANS},
}
"""Arguments of the networks whose configurations TRELLIS publishes with its code."""

MINIATURE: dict[Part, dict[str, Any]] = {
    Part.DINOV2: {
        "architectures": ["Dinov2WithRegistersModel"],
        "model_type": "dinov2_with_registers",
        "hidden_act": "gelu",
        "hidden_size": 32,
        "image_size": 56,
        "patch_size": 14,
        "layer_norm_eps": 1e-06,
        "mlp_ratio": 4,
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 2,
        "num_register_tokens": 4,
        "qkv_bias": True,
        "torch_dtype": "float32",
        "use_swiglu_ffn": False,
    },
    Part.VGGT: {
        "img_size": 56,
        "patch_size": 14,
        "embed_dim": 32,
        "patch_embed": {"depth": 2, "num_heads": 2},
        "depth": 4,
        "num_heads": 2,
        "layers": [0, 1, 2, 3],
        "camera_head": {"trunk_depth": 1, "num_heads": 2},
        "dense_head": {"features": 16, "out_channels": [8, 8, 16, 16], "last_channels": 8},
    },
    Part.STRUCTURE_CONDITION: {
        "channels": 32,
        "ctx_channels": 96,
        "num_heads": 2,
        "num_init_tokens": 16,
        "qk_rms_norm": True,
        "use_fp16": False,
    },
    Part.STRUCTURE_FLOW: PUBLISHED[Part.STRUCTURE_FLOW]
    | {"resolution": 4, "model_channels": 32, "cond_channels": 32, "num_blocks": 2, "num_heads": 2},
    Part.STRUCTURE_DECODER: PUBLISHED[Part.STRUCTURE_DECODER]
    | {"num_res_blocks": 1, "num_res_blocks_middle": 1, "channels": [16, 8, 8]},
    Part.LATENT_CONDITION: {"channels": 32, "ctx_channels": 96, "use_fp16": False},
    Part.LATENT_FLOW: PUBLISHED[Part.LATENT_FLOW]
    | {"resolution": 16, "model_channels": 32, "cond_channels": 32, "num_blocks": 2, "num_heads": 2}
    | {"num_io_res_blocks": 1, "io_block_channels": [16]},
    # Its norms have 32 groups even where the channels are an eighth.
    Part.MESH_DECODER: PUBLISHED[Part.MESH_DECODER]
    | {"resolution": 16, "model_channels": 256, "num_blocks": 2, "num_heads": 2, "window_size": 4},
    Part.GAUSSIAN_DECODER: PUBLISHED[Part.GAUSSIAN_DECODER]
    | {"resolution": 16, "model_channels": 32, "num_blocks": 2, "num_heads": 2, "window_size": 4}
    | {"representation_config": _GAUSSIANS | {"num_gaussians": 4}},
}
"""Networks that fit each other, small enough for a test: structure of 16 voxels a side."""


def write_checkpoint(
    root: Path,
    *,
    arguments: Mapping[Part, dict[str, Any]] = MINIATURE,
    seed: int = 0,
    half: torch.dtype = torch.float16,
    shards: int = 1,
    lock: bool = True,
) -> dict[Part, nn.Module]:
    """Write all repositories below a folder; returns the networks that were written, in float32.

    Args:
        root: The folder of weights.
        arguments: Of every network.
        seed: Of the random values.
        half: Dtype in which the torsos of TRELLIS' networks are stored; values are rounded to it.
        shards: Files of VGGT's tensors; an index lies beside more than one.
        lock: Also write the lock, so that the folder counts as fetched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {part: _random_network(part, arguments[part], half) for part in KINDS}
        networks[Part.VGGT] = _randomized(Vggt(vggt_config(arguments[Part.VGGT])))
        networks[Part.DINOV2] = _randomized(VisionTransformer(dinov2_config(arguments[Part.DINOV2])))
        _write_trellis(root / TRELLIS, arguments, networks, half)
        _write_vggt(root / VGGT, arguments[Part.VGGT], networks[Part.VGGT], shards)
        _write_dinov2(root / DINOV2, arguments[Part.DINOV2], networks[Part.DINOV2])
    if lock:
        lock_folder(root)
    return networks


def lock_folder(root: Path) -> None:
    """Lock what lies in a folder of weights, as if the pinned revisions had been fetched."""
    lock = Lock()
    for source in SOURCES:
        folder = root / source.repository
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {str(path.relative_to(folder)): measure(path) for path in paths}
        entry = LockedRepository(revision=source.revision, files=files)
        lock = lock.with_repository(source.repository, entry)
    write_lock(root, lock)


def vggt_config(arguments: Mapping[str, Any]) -> VggtConfig:
    """VGGT's configuration from the arguments that are written."""
    given = dict(arguments)
    embedding = given.pop("patch_embed", {}) | {
        name: given.pop(name) for name in ("img_size", "patch_size", "embed_dim")
    }
    from models.reconviagen.camera_head import CameraHeadConfig
    from models.reconviagen.dense_head import DenseHeadConfig

    return VggtConfig(
        patch_embed=VitConfig(**embedding),
        camera_head=CameraHeadConfig(**given.pop("camera_head", {})),
        dense_head=DenseHeadConfig(**given.pop("dense_head", {})),
        **given,
    )


def dinov2_config(arguments: Mapping[str, Any]) -> VitConfig:
    """DINOv2's configuration from Hugging Face's arguments."""
    return VitConfig(
        img_size=arguments["image_size"],
        patch_size=arguments["patch_size"],
        embed_dim=arguments["hidden_size"],
        depth=arguments["num_hidden_layers"],
        num_heads=arguments["num_attention_heads"],
        mlp_ratio=arguments["mlp_ratio"],
        num_register_tokens=arguments["num_register_tokens"],
    )


def _random_network(part: Part, arguments: dict[str, Any], half: torch.dtype) -> nn.Module:
    _, kind = KINDS[part]
    network = _randomized(kind.network(kind.config(**arguments)))
    network.to_precision(half)  # rounds
    return network.to_precision(torch.float32)


def _randomized(network: nn.Module) -> nn.Module:
    """Every parameter random, also those that start at zero; variances are kept from layer to layer."""
    for parameter in network.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        center = parameter.detach() if parameter.ndim == 1 else 0
        parameter.data = center + torch.randn_like(parameter) / fan_in**0.5
    return network.requires_grad_(False).eval()


def _write_trellis(
    folder: Path, arguments: Mapping[Part, dict[str, Any]], networks: dict[Part, nn.Module], half: torch.dtype
) -> None:
    (folder / "ckpts").mkdir(parents=True)
    (folder / "pipeline.json").write_text(json.dumps(pipeline_json()))
    for part, stem in STEMS.items():
        name, _ = KINDS[part]
        (folder / f"{stem}.json").write_text(json.dumps({"name": name, "args": arguments[part]}))
        network = networks[part].to_precision(half)
        save_file(_contiguous(network.state_dict()), folder / f"{stem}.safetensors")
        network.to_precision(torch.float32)


def pipeline_json() -> dict[str, Any]:
    """What `pipeline.json` says, with other statistics than the published."""

    def sampler(steps: int, strength: float) -> dict[str, Any]:
        return {
            "name": "FlowEulerGuidanceIntervalSampler",
            "args": {"sigma_min": 1e-5},
            "params": {
                "steps": steps,
                "cfg_strength": strength,
                "cfg_interval": [0.5, 1.0],
                "rescale_t": 3.0,
            },
        }

    return {
        "name": "TrellisImageTo3DPipeline",
        "args": {
            "models": {str(part): stem for part, stem in STEMS.items()},
            "sparse_structure_sampler": sampler(30, 7.5),
            "slat_sampler": sampler(12, 3.0),
            "slat_normalization": {
                "mean": [0.1 * i for i in range(8)],
                "std": [1 + 0.2 * i for i in range(8)],
            },
            "image_cond_model": "dinov2_vitl14_reg",
        },
    }


def _write_vggt(folder: Path, arguments: dict[str, Any], network: nn.Module, shards: int) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(arguments))
    channels = arguments["embed_dim"]
    tensors = _contiguous(network.state_dict()) | {
        "aggregator.patch_embed.mask_token": torch.randn(1, channels),
        "depth_head.norm.weight": torch.randn(2 * channels),
        "track_head.feature_extractor.norm.weight": torch.randn(2 * channels),
    }
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    names = sorted(tensors)
    size = -(-len(names) // shards)
    places = {name: f"model-{1 + i // size:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, folder / file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_dinov2(folder: Path, arguments: dict[str, Any], network: nn.Module) -> None:
    """Under Hugging Face's names, spelt out here once more: the loader's table is not asked."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(arguments))
    tensors = {"embeddings.mask_token": torch.randn(1, arguments["hidden_size"])}
    simple = {
        "cls_token": "embeddings.cls_token",
        "register_tokens": "embeddings.register_tokens",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
        "attn.proj": "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    for name, tensor in network.state_dict().items():
        beginning, inner = "", name
        if name.startswith("blocks."):
            _, number, inner = name.split(".", 2)
            beginning = f"encoder.layer.{number}."
        if inner.startswith("attn.qkv."):
            ending = inner.removeprefix("attn.qkv.")
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                tensors[f"{beginning}attention.attention.{part}.{ending}"] = third
            continue
        stem = next((each for each in simple if inner == each or inner.startswith(f"{each}.")), None)
        tensors[beginning + (inner if stem is None else simple[stem] + inner.removeprefix(stem))] = tensor
    save_file(_contiguous(tensors), folder / "model.safetensors")


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def write_tame_checkpoint(root: Path, *, seed: int = 0) -> None:
    """Write miniature networks whose random output looks like an object's.

    The structure's cube is occupied but for its border, the signed distance is negative in what is occupied,
    so that the surface is closed, and the predicted cameras are cameras, 45 degrees wide.
    """
    write_checkpoint(root, seed=seed, lock=False)
    stems = {part: root / TRELLIS / f"{stem}.safetensors" for part, stem in STEMS.items()}
    # The last convolution counts what is inside the cube: a voxel at its border has neighbours of zeros.
    _biased(stems[Part.STRUCTURE_DECODER], "out_layer.2", 0.0, {0: -37.0}, weight=1.0)
    _biased(stems[Part.MESH_DECODER], "out_layer", 0.05, dict.fromkeys(range(8), -0.5))
    camera = {2: 2.0, 6: 1.0, 7: 0.785, 8: 0.785}  # of each of four rounds that add up to it: a quarter
    quarters = {channel: value / 4 for channel, value in camera.items()}
    _biased(root / VGGT / "model.safetensors", "camera_head.pose_branch.fc2", 0.02, quarters)
    lock_folder(root)


def _biased(file: Path, layer: str, scale: float, bias: Mapping[int, float], *, weight: float = 0.0) -> None:
    """Change the weights of a layer in a file, and set its biases: 0 for outputs that are not named."""
    tensors = load_file(file)
    tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"] * scale + weight
    tensors[f"{layer}.bias"] = torch.zeros_like(tensors[f"{layer}.bias"])
    for output, value in bias.items():
        tensors[f"{layer}.bias"][output] = value
    save_file(tensors, file)
