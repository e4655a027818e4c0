"""The networks that look at images: DINOv2 and VGGT."""
# ruff: noqa: D102 (what overrides a method of `Pair` is documented there)

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.parity.pair import SPECIAL, Outputs, Pair, autocast
from models.reconviagen.camera_head import CameraHeadConfig
from models.reconviagen.dense_head import DenseHeadConfig
from models.reconviagen.renaming import Renaming, of_vggt
from models.reconviagen.vggt import Vggt, VggtConfig, VggtFeatures
from models.reconviagen.vit import IGNORED_PREFIXES, VisionTransformer, VitConfig

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def vision_transformer(modules: Any, block: Any, args: dict[str, Any]) -> nn.Module:
    """DINOv2's network with registers, as `dinov2_vitl14_reg` and VGGT build it.

    Args:
        modules: The module of `DinoVisionTransformer` and `MemEffAttention`.
        block: Class of its blocks.
        args: Sizes.
    """
    network: nn.Module = modules.DinoVisionTransformer(
        **args,
        mlp_ratio=4,
        init_values=1.0,
        block_chunks=0,
        interpolate_antialias=True,
        interpolate_offset=0.0,
        block_fn=partial(block, attn_class=modules.MemEffAttention),
    )
    return network


class Dinov2(Pair):
    """The image encoder, whose tokens are normalised without the network's own last norm."""

    name = "dinov2"
    half = torch.bfloat16
    renaming = Renaming(ignored=IGNORED_PREFIXES)

    def theirs(self, *, half: bool) -> nn.Module:
        """Upstream runs it in float32 always."""
        modules = self.upstream.module("dinov2.models.vision_transformer")
        return vision_transformer(modules, modules.Block, self.args)

    def ours(self) -> nn.Module:
        return VisionTransformer(VitConfig(**self.args))

    def inputs(self) -> dict[str, Tensor]:
        side = self.args["img_size"]
        return {"images": self.random(self.scene.views, 3, side, side, seed=1).sigmoid()}

    def run_theirs(self, module: nn.Module, inputs: dict[str, Tensor], *, half: bool) -> Outputs:
        images = inputs["images"]
        mean, std = (images.new_tensor(v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
        tokens = module((images - mean) / std, is_training=True)["x_prenorm"]
        return {"tokens": nn.functional.layer_norm(tokens, tokens.shape[-1:])}

    def run_ours(self, module: nn.Module, inputs: dict[str, Tensor]) -> Outputs:
        assert isinstance(module, VisionTransformer)
        return {"tokens": module.encode(inputs["images"])}


class VggtPair(Pair):
    """VGGT's aggregator, and its heads for cameras, points and depths on random features."""

    name = "vggt"
    half = torch.bfloat16
    renaming = of_vggt(VggtConfig(with_depth=True))

    def theirs(self, *, half: bool) -> nn.Module:
        args, dim = self.args, 2 * self.args["embed_dim"]
        if self.size == "published":
            module: nn.Module = self.upstream.module("vggt.models.vggt").VGGT()
            del module.track_head
            return module
        vits = self.upstream.module("vggt.layers.vision_transformer")
        module = nn.Module()
        sizes = {key: args[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
        module.aggregator = self.upstream.module("vggt.models.aggregator").Aggregator(
            **sizes, patch_embed="conv"
        )
        module.aggregator.patch_embed = vision_transformer(
            vits, vits.Block, sizes | {"num_register_tokens": 4}
        )
        module.camera_head = self.upstream.module("vggt.heads.camera_head").CameraHead(
            dim_in=dim, **self.configuration["camera_head"]
        )
        dense = partial(
            self.upstream.module("vggt.heads.dpt_head").DPTHead,
            dim_in=dim,
            conf_activation="expp1",
            intermediate_layer_idx=list(args["layers"]),
            **self.configuration["dense_head"],
        )
        module.point_head = dense(output_dim=4, activation="inv_log")
        module.depth_head = dense(output_dim=2, activation="exp")
        return module

    def ours(self) -> nn.Module:
        sizes = {key: self.args[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
        dense = self.configuration["dense_head"]
        config = VggtConfig(
            patch_embed=VitConfig(**sizes),
            depth=self.args["depth"],
            num_heads=self.args["num_heads"],
            layers=tuple(self.args["layers"]),
            camera_head=CameraHeadConfig(**self.configuration["camera_head"]),
            dense_head=DenseHeadConfig(dense["features"], tuple(dense["out_channels"])),
            with_depth=True,
        )
        return Vggt(config)

    def inputs(self) -> dict[str, Tensor]:
        side = self.args["img_size"]
        shape = (4, self.scene.views, self.tokens, 2 * self.args["embed_dim"])
        return {
            "images": self.random(self.scene.views, 3, side, side, seed=2).sigmoid(),
            "features": self.random(*shape, seed=3),
        }

    def run_theirs(self, module: nn.Module, inputs: dict[str, Tensor], *, half: bool) -> Outputs:
        networks: Any = module
        images, layers = inputs["images"][None], self.args["layers"]
        with autocast(self.upstream.device, half=half):
            found, _ = networks.aggregator(images)
        features = dict(zip(layers, inputs["features"][:, None], strict=True))
        every = [features.get(index, inputs["features"][:1]) for index in range(self.args["depth"])]
        points, confidences = networks.point_head(every, images, SPECIAL)
        depths, depth_confidences = networks.depth_head(every, images, SPECIAL)
        return {f"layer {index}": found[index][0] for index in layers} | {
            "cameras": networks.camera_head(every)[-1][0],
            "points": points[0],
            "point confidences": confidences[0],
            "depths": depths[0, ..., 0],
            "depth confidences": depth_confidences[0],
        }

    def run_ours(self, module: nn.Module, inputs: dict[str, Tensor]) -> Outputs:
        assert isinstance(module, Vggt)
        side, size = self.args["img_size"], self.args["patch_size"]
        found = module.features(inputs["images"])
        features = VggtFeatures(tuple(inputs["features"]), SPECIAL, side, side, size)
        points, confidences = module.points(features)
        depths, depth_confidences = module.depths(features)
        layers = zip(self.args["layers"], found.layers, strict=True)
        return {f"layer {index}": layer for index, layer in layers} | {
            "cameras": module.camera_head(features.layers[-1][:, 0]),
            "points": points,
            "point confidences": confidences,
            "depths": depths,
            "depth confidences": depth_confidences,
        }
