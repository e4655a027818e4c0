"""Imports upstream's code from checkouts on disk; nothing of it is part of this project.

ReconViaGen: https://github.com/GAP-LAB-CUHK-SZ/ReconViaGen, main branch (v0.2), with VGGT in `wheels/vggt`.
DINOv2: https://github.com/facebookresearch/dinov2.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.parity.standins import StandIns

SETTINGS = {
    "ATTN_BACKEND": "xformers",  # the one that both its dense and its sparse attention know beside flash_attn
    "SPARSE_ATTN_BACKEND": "xformers",
    "SPCONV_ALGO": "native",  # as upstream's applications set it
}


@dataclass(frozen=True)
class Upstream:
    """Upstream's modules and which packages served them.

    Attributes:
        device: Where its networks run.
        standins: What serves in place of packages that are missing.
    """

    device: torch.device
    standins: StandIns

    def module(self, name: str) -> ModuleType:
        """One of upstream's modules, such as `trellis.models.structured_latent_flow`."""
        return importlib.import_module(name)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Within it upstream finds its packages, and `tensor.cuda()` means the device it was loaded for."""
        device = self.device
        with (
            self.standins.installed(),
            mock.patch.object(torch.Tensor, "cuda", lambda tensor: tensor.to(device)),
        ):
            yield

    def sparse_tensor(self, features: Tensor, coords: Tensor) -> Any:
        """Upstream's sparse tensor of one object: features [N, C] at voxels [N, 3]."""
        indices = torch.nn.functional.pad(coords.int(), (1, 0))
        return self.module("trellis.modules.sparse").SparseTensor(features, indices)


def load_upstream(reconviagen: Path, dinov2: Path, device: torch.device) -> Upstream:
    """Imports upstream from the two checkouts for one device, of which it writes some into its modules.

    Raises:
        FileNotFoundError: If a checkout lacks the package that is looked for.
    """
    check_checkouts(reconviagen, dinov2)
    os.environ.update(SETTINGS)
    upstream = Upstream(device, StandIns(cuda=device.type == "cuda"))
    if upstream.standins.packages["xformers"] == "stand-in":
        os.environ["XFORMERS_DISABLED"] = "1"  # DINOv2 then calls torch's attention itself
    sys.path[:0] = [str(path.resolve()) for path in (reconviagen, reconviagen / "wheels/vggt", dinov2)]
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(), upstream.running():
        warnings.simplefilter("ignore")
        for name in ("trellis.pipelines", "dinov2.models.vision_transformer"):
            importlib.import_module(name)
        _move_defaults(upstream)
    return upstream


def check_checkouts(reconviagen: Path, dinov2: Path) -> None:
    """Refuse checkouts that lack a package that is needed.

    Raises:
        FileNotFoundError: It says which package.
    """
    for folder in (reconviagen / "trellis", reconviagen / "wheels/vggt/vggt", dinov2 / "dinov2"):
        if not folder.is_dir():
            raise FileNotFoundError(f"no {folder.name} in {folder.parent}")


def _move_defaults(upstream: Upstream) -> None:
    """Upstream builds its meshes and Gaussians on "cuda" unless told otherwise, and never tells."""
    for module, name in (
        ("trellis.models.structured_latent_vae.decoder_mesh", "SparseFeatures2Mesh"),
        ("trellis.models.structured_latent_vae.decoder_gs", "Gaussian"),
    ):
        owner = upstream.module(module)
        setattr(owner, name, functools.partial(getattr(owner, name), device=str(upstream.device)))
