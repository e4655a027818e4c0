"""Light from far away: an environment map and what surfaces of different roughness see of it.

A map is an equirectangular image [He, We, 3] of linear radiance in the world frame, z being its pole: row 0
looks along +z, the last row along -z, the centre of the image along +x, its left quarter along +y and its
right quarter along -y: (u, v) = (1/2 - azimuth / 2 pi, polar angle / pi) with azimuth = atan2(y, x). That is
an image seen from inside, not mirrored, and Blender's convention.

What a surface sees is linear in the texels: diffuse light is a cosine-weighted mean of them around the
normal, specular light a GGX-weighted mean around the mirrored view (Karis, 2013, with normal = view =
mirrored direction). The weights depend on the map's size only. They are computed once; then all filtered maps
of all roughnesses are one small matrix product (16 x 32 texels: 5625 x 512 x 3, 17 MFLOP), and its transpose
carries all gradients back. The filtered maps are looked up on an octahedral grid (Engelhardt and Dachsbacher,
2008), which needs neither trigonometry nor care at poles and seams. Its texels stand on the borders and the
axes, where the octahedron is folded: a line of texels on the border occurs twice, and nothing jumps there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 8
"""Filtered specular maps, at equally spaced roughnesses from 0 (a mirror) to 1."""

MAX_HEIGHT = 32
"""Rows of the largest map that is used as it is; larger ones are averaged down to this (and twice as
wide)."""

_MIN_SIDE = 25  # of the octahedral grid, texels; odd, so that texels stand on the axes
_FINE_HEIGHT = 64  # rows of the sub-directions that stand for a texel: narrow lobes must not fall between two
_WIDE = 0.5  # roughness from which half as many rows will do
_OUTSIDE = 3.0  # a grid coordinate beyond the border, where there is no light and where no gradient goes


@dataclass(frozen=True)
class FilteredLight:
    """What surfaces see of an environment map. Make it with `filter_light`.

    Attributes:
        diffuse: [1, 3, S, S] on the octahedral grid.
        specular: [1, 3, LEVELS, S, S], the same for each roughness.
    """

    diffuse: Tensor
    specular: Tensor

    def irradiance(self, normal: Tensor) -> Tensor:
        """Irradiance divided by pi, [..., 3]: the radiance of a white diffuse surface. Zero for zero normals.

        Args:
            normal: [..., 3] directions, of any length.
        """
        side = self.diffuse.shape[-1]
        # Corners are not aligned: where they are, cuDNN takes over, whose gradients are far slower.
        where = _octahedral(normal) * ((side - 1) / side)
        found = F.grid_sample(self.diffuse, where.reshape(1, 1, -1, 2), align_corners=False)  # [1, 3, 1, N]
        return found[0, :, 0].T.reshape(normal.shape)

    def reflected(self, direction: Tensor, roughness: Tensor) -> Tensor:
        """Mean radiance around `direction` as a surface of some roughness mirrors it, [..., 3].

        Args:
            direction: [..., 3] mirrored views, of any length; zero vectors see nothing.
            roughness: [..., 1] in [0, 1].
        """
        where = _octahedral(direction)
        where = torch.cat([where, roughness * 2 - 1], -1)
        found = F.grid_sample(self.specular, where.reshape(1, 1, 1, -1, 3), align_corners=True)
        return found[0, :, 0, 0].T.reshape(direction.shape)


class EnvironmentLight(nn.Module):
    """A learned environment map; radiance is the exponential of its parameters, and so positive.

    Args:
        radiance: [He, We, 3] where to start.

    Attributes:
        log_radiance: [He, We, 3] the parameters.
    """

    def __init__(self, radiance: Tensor) -> None:
        super().__init__()
        self.log_radiance = nn.Parameter(radiance.clamp(min=1e-4).log())

    @property
    def radiance(self) -> Tensor:
        """[He, We, 3] linear radiance."""
        return self.log_radiance.exp()

    def forward(self) -> FilteredLight:
        """The light as it stands, filtered."""
        return filter_light(self.radiance)


def filter_light(radiance: Tensor) -> FilteredLight:
    """Filter an environment map for every direction and roughness. Differentiable.

    Args:
        radiance: [He, We, 3] linear. A map of more than `MAX_HEIGHT` rows is averaged down first: fine for
            rough surfaces, soft for mirrors.
    """
    radiance = _reduced(radiance)
    height, width, _ = radiance.shape
    weights = _weights(height, width, str(radiance.device))
    side = math.isqrt(weights.shape[0] // (LEVELS + 1))
    # One matrix-vector product a channel: as a product with three columns the CPU takes ten times longer.
    channels = [weights @ channel for channel in radiance.reshape(-1, 3).T.contiguous()]
    filtered = torch.stack(channels).reshape(1, 3, LEVELS + 1, side, side)
    return FilteredLight(diffuse=filtered[:, :, LEVELS], specular=filtered[:, :, :LEVELS])


def mean_radiance(radiance: Tensor) -> Tensor:
    """Mean over the sphere [3] of an environment map [He, We, 3]."""
    height, width, _ = radiance.shape
    weight = solid_angles(height, width, radiance.device) / (4 * math.pi)
    return (radiance * weight[..., None]).sum((0, 1))


def studio_light(up: Tensor | None = None, height: int = 16) -> Tensor:
    """A neutral light for materials whose own light is unknown: [height, 2 height, 3].

    A large soft white dome, brighter from above (1.5) than from below (0.5), with mean 1 over the sphere: a
    white diffuse surface has brightness 1 where it faces the horizon.

    Args:
        up: [3] unit vector of the world's up direction; +z without it.
        height: Rows.
    """
    up = torch.tensor([0.0, 0.0, 1.0]) if up is None else up
    elevation = (texel_directions(height, 2 * height, up.device) * up).sum(-1, keepdim=True)
    return (1 + 0.5 * torch.sin(math.pi / 2 * elevation)).expand(-1, -1, 3).contiguous()


def texel_directions(height: int, width: int, device: torch.device | str) -> Tensor:
    """Unit vectors to the centres of an environment map's texels, [height, width, 3]."""
    polar = (torch.arange(height, device=device) + 0.5) * (math.pi / height)
    azimuth = math.pi - (torch.arange(width, device=device) + 0.5) * (2 * math.pi / width)
    sine = polar.sin()[:, None]
    z = polar.cos()[:, None].expand(height, width)
    return torch.stack([sine * azimuth.cos(), sine * azimuth.sin(), z], -1)


@lru_cache(maxsize=8)
def solid_angles(height: int, width: int, device: torch.device | str) -> Tensor:
    """Solid angles of an environment map's texels, [height, width], steradians; their sum is 4 pi."""
    border = torch.cos(torch.arange(height + 1, device=device, dtype=torch.float64) * (math.pi / height))
    rows = (border[:-1] - border[1:]) * (2 * math.pi / width)
    return rows.float()[:, None].expand(height, width)


def _reduced(radiance: Tensor) -> Tensor:
    """A map of at most `MAX_HEIGHT` rows, texels averaged by solid angle."""
    height, width, _ = radiance.shape
    if height <= MAX_HEIGHT:
        return radiance
    weight = solid_angles(height, width, radiance.device)[None]
    layers = torch.cat([radiance.permute(2, 0, 1) * weight, weight])
    layers = F.adaptive_avg_pool2d(layers[None], (MAX_HEIGHT, 2 * MAX_HEIGHT))[0]
    return (layers[:3] / layers[3:]).permute(1, 2, 0)


def _octahedral(direction: Tensor) -> Tensor:
    """Coordinates [..., 2] in [-1, 1] of directions [..., 3] of any length.

    Zero vectors are nowhere: outside. On CUDA, samples without a surface that all add their zero gradients to
    one texel would wait for each other.
    """
    length = direction.abs().sum(-1, keepdim=True)
    x, y, z = (direction / length.clamp(min=1e-12)).split(1, -1)
    flat = torch.cat([x, y], -1)
    folded = (1 - torch.cat([y, x], -1).abs()) * _sign(flat)
    return torch.where(length > 0, torch.where(z < 0, folded, flat), _OUTSIDE)


def _grid_directions(side: int, device: torch.device | str) -> Tensor:
    """Unit vectors to the texels of an octahedral grid, [side^2, 3], rows along y."""
    line = torch.linspace(-1, 1, side, device=device)
    y, x = torch.meshgrid(line, line, indexing="ij")
    z = 1 - x.abs() - y.abs()
    lower_x, lower_y = (1 - y.abs()) * _sign(x), (1 - x.abs()) * _sign(y)
    x, y = torch.where(z < 0, lower_x, x), torch.where(z < 0, lower_y, y)
    return F.normalize(torch.stack([x, y, z], -1).reshape(-1, 3), dim=-1)


def _sign(value: Tensor) -> Tensor:
    """1 or -1, and 1 at 0."""
    return torch.where(value < 0, -1.0, 1.0).to(value.dtype)


@lru_cache(maxsize=4)
def _weights(height: int, width: int, device: str) -> Tensor:
    """From texels to filtered maps: [(LEVELS + 1) S^2, He We], rows that sum to 1; diffuse is last."""
    directions = _grid_directions(max(_MIN_SIDE, height | 1), device)
    fine = _Quadrature(directions, height, width, max(1, _FINE_HEIGHT // height))
    coarse = _Quadrature(directions, height, width, max(1, _FINE_HEIGHT // (2 * height)))
    levels = [_bilinear(directions, height, width)]
    for level in range(1, LEVELS):
        roughness = level / (LEVELS - 1)
        lobe = fine if roughness < _WIDE else coarse
        levels.append(lobe.weights(_ggx_kernel(lobe.cosine, roughness)))
    return torch.cat([*levels, coarse.weights(coarse.cosine.clamp(min=0))])


class _Quadrature:
    """Sums over the sphere around `directions` [D, 3], each texel of a map standing for `parts`^2 points."""

    def __init__(self, directions: Tensor, height: int, width: int, parts: int) -> None:
        size = (height * parts, width * parts)
        self._layout = (height, parts, width, parts)
        self._solid = solid_angles(*size, directions.device).reshape(-1)
        self.cosine = directions @ texel_directions(*size, directions.device).reshape(-1, 3).T

    def weights(self, kernel: Tensor) -> Tensor:
        """Weights of the texels [D, height width] for a kernel [D, points]; rows sum to 1."""
        summed = (kernel * self._solid).reshape(-1, *self._layout).sum((2, 4)).flatten(1)
        return summed / summed.sum(1, keepdim=True)


def _ggx_kernel(cosine: Tensor, roughness: float) -> Tensor:
    """Weight of light at an angle from the mirrored direction, not normalised.

    GGX of the half vector, importance sampled and weighted by the cosine as in Karis, 2013.
    """
    alpha_squared = roughness**4
    half_squared = (1 + cosine) / 2
    return cosine.clamp(min=0) / (half_squared * (alpha_squared - 1) + 1).square()


def _bilinear(directions: Tensor, height: int, width: int) -> Tensor:
    """Weights [D, He We] of bilinear lookups of unit `directions` [D, 3] in an environment map."""
    x, y, z = (directions + 0.0).unbind(
        -1
    )  # -0 becomes 0: the lower pole occurs four times, with one azimuth
    column = (0.5 - torch.atan2(y, x) / (2 * math.pi)) * width - 0.5
    row = (torch.acos(z.clamp(-1, 1)) / math.pi * height - 0.5).clamp(0, height - 1)
    left, top = column.floor(), row.floor()
    weights = directions.new_zeros(len(directions), height * width)
    for down in (0, 1):
        for right in (0, 1):
            share = (1 - (column - left - right).abs()) * (1 - (row - top - down).abs())
            index = (top + down).clamp(max=height - 1) * width + (left + right) % width
            weights.scatter_add_(1, index.long()[:, None], share[:, None])
    return weights
