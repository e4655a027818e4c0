"""The figures that ours are held against.

NVlabs/nvdiffrec on an H200, own measurement, see `benchmarks/results/README.md`: its FlexiCubes recipe on six
views of 512x512, colour and mask only, scored on 32 held-out views over white.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Baseline:
    """What the original reached.

    Attributes:
        psnr_db: Held-out PSNR.
        chamfer: World units.
        seconds: Wall-clock time of the training.
    """

    psnr_db: float
    chamfer: float
    seconds: float


SIZE = (512, 512)
TEST_VIEWS = 32

FIGURES = {
    "spot/orbit6": Baseline(26.80, 0.0140, 255),
    "duck/orbit6": Baseline(26.30, 0.0200, 104),
    "bob/orbit6": Baseline(20.54, 0.0345, 107),
    "spot/axis6": Baseline(25.16, 0.0163, 106),
}


def find_baseline(data: str, size: tuple[int, int], test_views: int) -> Baseline | None:
    """The baseline of a data set and rig; None without one, or for other data of the same name.

    Args:
        data: `<data set>/<rig>`.
        size: Width and height of the views, pixels.
        test_views: Number of held-out views.
    """
    return FIGURES.get(data) if (size, test_views) == (SIZE, TEST_VIEWS) else None
