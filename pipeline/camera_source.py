"""Where the cameras of an input come from. Imports nothing heavy: `recon submit` asks too."""

from __future__ import annotations

from pipeline.ingest import InputPlan
from pipeline.transforms import TRANSFORMS_NAME
from schemas.options import Options, ReconviagenOptions

STRUCTURE_FROM_MOTION = "sfm:pycolmap"
"""They are estimated before the model sees the views."""

MODEL = "model:vggt"
"""The model finds them."""


def source_of_cameras(plan: InputPlan, options: Options) -> str:
    """`transforms.json` or `rig:<name>` where the cameras are given, else how they will be found."""
    if any(view.frame is not None for view in plan.views):
        return TRANSFORMS_NAME
    if options.cameras.rig is not None:
        return f"rig:{options.cameras.rig}"
    return MODEL if isinstance(options, ReconviagenOptions) else STRUCTURE_FROM_MOTION
