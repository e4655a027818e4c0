from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from textured_meshes import SIDE_COLORS, colored_cube, spherical_mesh

from models.raster import RasterBackend, make_backend
from models.shading.light import studio_light
from pipeline.preview import BACKGROUND, STILLS, TURNTABLE_FRAMES, render_previews, still_direction

SIZE = 64


@pytest.fixture(scope="module")
def raster() -> RasterBackend:
    return make_backend("warp", "cpu")


def silent(fraction: float, message: str, metrics: dict[str, float]) -> None:
    """A callback for those who do not look."""


@pytest.fixture(scope="module", params=["z", "y"])
def cube(
    request: pytest.FixtureRequest, raster: RasterBackend, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("cube")
    render_previews(raster, colored_cube(), folder, size=SIZE, up_axis=request.param, callback=silent)
    return request.param, folder / "previews"


def color_at(image: Image.Image, row: float, column: float) -> np.ndarray:
    """The colour in [0, 1] at a place given as a share of the picture's side."""
    pixels = np.asarray(image.convert("RGB")) / 255
    return pixels[int(row * pixels.shape[0]), int(column * pixels.shape[1])]


def test_every_still_shows_the_side_it_is_named_after(cube: tuple[Any, Path]) -> None:
    up_axis, folder = cube
    sides = {"right": "+x", "left": "-x"}
    sides |= {"front": "-y", "back": "+y", "top": "+z", "bottom": "-z"} if up_axis == "z" else {}
    sides |= {"front": "+z", "back": "-z", "top": "+y", "bottom": "-y"} if up_axis == "y" else {}
    for name in STILLS:
        with Image.open(folder / f"{name}.png") as image:
            assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")
            np.testing.assert_allclose(color_at(image, 0.5, 0.5), SIDE_COLORS[sides[name]], atol=0.01)
            np.testing.assert_allclose(color_at(image, 0.02, 0.02), [BACKGROUND] * 3, atol=0.01)


def test_turntable_starts_at_the_front_from_a_little_above_and_turns_to_the_right(
    cube: tuple[Any, Path],
) -> None:
    up_axis, folder = cube
    front, top = ("-y", "+z") if up_axis == "z" else ("+z", "+y")
    with Image.open(folder / "turntable.webp") as image:
        assert (image.format, image.n_frames, image.size) == ("WEBP", TURNTABLE_FRAMES, (SIZE, SIZE))
        assert image.info["loop"] == 0
        np.testing.assert_allclose(color_at(image, 0.6, 0.5), SIDE_COLORS[front], atol=0.25)  # lossy
        np.testing.assert_allclose(color_at(image, 0.28, 0.5), SIDE_COLORS[top], atol=0.25)  # lossy
        image.seek(TURNTABLE_FRAMES // 4)
        np.testing.assert_allclose(color_at(image, 0.6, 0.5), SIDE_COLORS["+x"], atol=0.25)  # lossy


@pytest.mark.parametrize("up_axis", ["y", "z"])
def test_still_directions_are_unit_vectors_square_to_their_up(up_axis: Any) -> None:
    for name in STILLS:
        direction, up = still_direction(name, up_axis)
        assert np.linalg.norm(direction) == pytest.approx(1)
        assert np.linalg.norm(up) == pytest.approx(1)
        assert direction @ up == pytest.approx(0)


def test_the_object_fits_into_every_picture_and_nearly_fills_it(
    raster: RasterBackend, tmp_path: Path
) -> None:
    render_previews(raster, spherical_mesh(), tmp_path, size=SIZE, up_axis="z", callback=silent)
    for path in (tmp_path / "previews").glob("*.png"):
        with Image.open(path) as image:
            covered = (np.abs(np.asarray(image) / 255 - BACKGROUND) > 0.02).any(-1)
        frame = np.ones_like(covered)
        frame[1:-1, 1:-1] = False
        assert not covered[frame].any()
        assert covered.any(0).mean() > 0.85


@pytest.mark.parametrize(("up_axis", "above"), [("z", [0.0, 0, 1]), ("y", [0.0, 1, 0])])
def test_a_lit_model_is_shown_in_its_own_light_or_in_a_studio(
    raster: RasterBackend, tmp_path: Path, up_axis: Any, above: list[float]
) -> None:
    mesh = spherical_mesh(512, 3, unlit=False)
    mesh = replace(mesh, base_color=torch.full_like(mesh.base_color, 0.6))

    def halves(environment: torch.Tensor | None, name: str) -> tuple[float, float]:
        (tmp_path / name).mkdir()
        lit = replace(mesh, environment=environment)
        render_previews(raster, lit, tmp_path / name, size=SIZE, up_axis=up_axis, callback=silent)
        with Image.open(tmp_path / name / "previews" / "front.png") as image:
            return float(color_at(image, 0.25, 0.5).mean()), float(color_at(image, 0.75, 0.5).mean())

    studio_top, studio_bottom = halves(None, "studio")
    assert studio_top > studio_bottom + 0.05
    own_top, own_bottom = halves(studio_light(-torch.tensor(above)), "own")
    assert own_bottom > own_top + 0.05


def test_every_picture_is_reported_and_the_first_can_cancel(raster: RasterBackend, tmp_path: Path) -> None:
    fractions: list[float] = []
    render_previews(
        raster,
        spherical_mesh(16, 1),
        tmp_path,
        size=SIZE,
        up_axis="z",
        callback=lambda fraction, message, metrics: fractions.append(fraction),
    )
    assert len(fractions) == len(STILLS) + TURNTABLE_FRAMES
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1

    def cancel(fraction: float, message: str, metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    (tmp_path / "cancelled").mkdir()
    with pytest.raises(KeyboardInterrupt):
        render_previews(
            raster, spherical_mesh(16, 1), tmp_path / "cancelled", size=SIZE, up_axis="z", callback=cancel
        )
    assert [p.name for p in (tmp_path / "cancelled" / "previews").iterdir()] == ["front.png"]
