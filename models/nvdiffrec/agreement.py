"""How well views agree on one rigid object, as residuals with derivatives for registering them.

Three kinds of residual hold a point that one view measured against another view (its partner):

- depth: the point's distance from the plane that the partner measured there (projective point-to-plane
  alignment, Blais and Levine 1995, Chen and Medioni 1992), where both see the same surface;
- colour: the difference of the two views' colours there;
- silhouette: every point must project inside the partner's mask, and along the mask's rim some point must
  reach it.

All are in units of their standard deviation; distances are in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import PosedViews
from models.geometry.carving import silhouette_distance
from models.geometry.depth_maps import resize_depths
from models.geometry.rotation import rigid_about

LOCAL = 15  # unknowns that a residual touches: motions and depth scales of owner and partner, focal length
_OWNER, _PARTNER, _OWNER_SCALE, _PARTNER_SCALE, _FOCAL = slice(0, 6), slice(6, 12), 12, 13, 14

DEPTH_SIGMA = 1.0  # pixels
RIM_SIGMA = 0.7  # pixels
_COLOR_SIGMA = 0.15  # of colours in [0, 1]
_FACING = 0.5  # cosine between the normals of two measurements of one surface
_JUMP = 4.0  # neighbouring measurements further apart than this many pixels are not one surface
_MARGIN = 2.0  # colours nearer to the silhouette than this, pixels, are mixed with the background
_RIM_SAMPLES = 400  # of a silhouette
_CAP = 5.0  # residuals beyond this many standard deviations count as this, where solutions are judged
_TOLERANCE = 0.5  # points no further outside a mask than this, pixels, do not contradict it
_MEASURED = 0.5  # share of the object's pixels that a view with depth has measured at least
_MAX_LOG_SCALE = 0.36  # depth maps whose unit is off by more than a factor of 1.4 are beyond help
_SCALES = 49
_TOUCHING = 0.9  # share of a view's points from which on the hull is taken to touch the surface
OUTWARDS = 2.0  # pixels outside the silhouette from where its outermost points are looked for


@dataclass(frozen=True)
class Poses:
    """What is being estimated, float64.

    Attributes:
        camera_to_world: [V, 4, 4], OpenGL axes.
        log_scale: [V] logarithms of the factors on the views' depth.
        log_focal: [] logarithm of the factor on all focal lengths.
        center: [3] about which corrections rotate.
    """

    camera_to_world: Tensor
    log_scale: Tensor
    log_focal: Tensor
    center: Tensor

    def moved(self, step: Tensor, *, cameras: bool) -> Poses:
        """After a step [7 V + 1]: motions [V, 6] (rotation vector, translation), scales [V], focal length.

        Without `cameras` these keep their bits.
        """
        views = len(self.log_scale)
        scale = self.log_scale + step[6 * views : 7 * views]
        if not cameras:
            return replace(self, log_scale=scale)
        motion = step[: 6 * views].reshape(views, 6)
        pose = rigid_about(motion[:, :3], motion[:, 3:], self.center) @ self.camera_to_world
        return Poses(pose, scale, self.log_focal + step[-1], self.center)


@dataclass(frozen=True)
class Rows:
    """R residuals.

    Attributes:
        residual: [R], in standard deviations.
        jacobian: [R, LOCAL] derivatives.
        weight: [R] robust weights in [0, 1].
        owner, partner: [R] int64, the views.
    """

    residual: Tensor
    jacobian: Tensor
    weight: Tensor
    owner: Tensor
    partner: Tensor


class Level:
    """The views at one resolution, prepared for comparing.

    Args:
        views: The views, with clean depth.
        side: Longer side of the images at this level, pixels.
        points: How many points of a view are held against its partners.
        partners: [V, J] int64, the views that each is compared with.
        generator: Chooses the points.
    """

    def __init__(
        self, views: PosedViews, side: int, points: int, partners: Tensor, generator: torch.Generator
    ) -> None:
        cameras = views.cameras
        factor = side / max(cameras.width, cameras.height)
        self.width = max(1, round(cameras.width * factor))
        self.height = max(1, round(cameras.height * factor))
        size = (self.height, self.width)
        small = cameras.resized(self.width, self.height)
        self.focal = small.intrinsics[:, [0, 1], [0, 1]].double()  # [V, 2]
        self.principal = small.intrinsics[:, :2, 2].double()
        self.pixel = 1 / self.focal.amin(1)  # [V] longer side of a pixel at depth 1, world units
        masks = F.interpolate(views.masks[:, None], size, mode="area")
        colors = F.interpolate((views.images * views.masks[..., None]).permute(0, 3, 1, 2), size, mode="area")
        colors = colors / masks.clamp(min=1e-3)
        depth = torch.zeros_like(masks[:, 0]) if views.depths is None else resize_depths(views.depths, size)
        self.depth = (depth * (masks[:, 0] >= 0.5)).double()
        self.partners = partners
        silhouette = silhouette_distance(masks[:, 0])
        fields = torch.cat([silhouette[:, None], colors], 1)  # [V, 4, H, W]
        gx, gy = _central_differences(fields)
        self.fields = torch.cat([fields, gx, gy], 1).permute(0, 2, 3, 1).double()  # [V, H, W, 12]
        self.points = self._camera_points()  # [V, H, W, 3], OpenGL axes, as measured
        self.normals = self._normals()
        rims = [_rim(*parts) for parts in zip(silhouette, gx[:, 0], gy[:, 0], strict=True)]
        self.rims = [rim[:: max(1, -(-len(rim) // _RIM_SAMPLES))] for rim in rims]
        self.all = (self.depth > 0).nonzero()  # [A, 3]: view, row, column
        chosen = []
        for view in range(len(views)):
            mine = self.all[self.all[:, 0] == view]
            chosen.append(mine[torch.randperm(len(mine), generator=generator)[:points].to(mine.device)])
        self.chosen = torch.cat(chosen)

    def _camera_points(self) -> Tensor:
        """Measured points [V, H, W, 3] in camera axes (OpenGL)."""
        depth = self.depth
        x = torch.arange(self.width, dtype=depth.dtype, device=depth.device) + 0.5
        y = torch.arange(self.height, dtype=depth.dtype, device=depth.device) + 0.5
        across = (x - self.principal[:, :1]) / self.focal[:, :1]  # [V, W]
        up = (self.principal[:, 1:] - y) / self.focal[:, 1:]  # [V, H]
        return torch.stack([across[:, None] * depth, up[:, :, None] * depth, -depth], -1)

    def _normals(self) -> Tensor:
        """Unit normals [V, H, W, 3] in camera axes, towards the camera; zero where they are not known."""
        points, depth = self.points, self.depth
        pad = F.pad(points.permute(0, 3, 1, 2), (1, 1, 1, 1)).permute(0, 2, 3, 1)
        along_x = pad[:, 1:-1, 2:] - pad[:, 1:-1, :-2]
        along_y = pad[:, :-2, 1:-1] - pad[:, 2:, 1:-1]
        padded = F.pad(depth[:, None], (1, 1, 1, 1))[:, 0]
        across, down = padded[:, 1:-1], padded[:, :, 1:-1]
        around = torch.stack([across[..., 2:], across[..., :-2], down[:, 2:], down[:, :-2]])
        reach = _JUMP * depth * self.pixel[:, None, None]
        smooth = ((around > 0) & ((around - depth).abs() < reach)).all(0) & (depth > 0)
        return F.normalize(torch.linalg.cross(along_x, along_y), dim=-1) * smooth[..., None]

    def measured(self) -> Tensor:
        """Which views have depth on most of the object, [V] bool."""
        return (self.depth > 0).sum((1, 2)) >= _MEASURED * (self.fields[..., 0] < 0).sum((1, 2))

    def world(self, poses: Poses, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points `index` [M, 3] in the world [M, 3], and their derivatives by scale and by focal length."""
        view, row, column = index.unbind(1)
        local = self.points[view, row, column] * poses.log_scale[view].exp()[:, None]
        across = torch.cat([local[:, :2] * torch.exp(-poses.log_focal), local[:, 2:]], 1)
        pose = poses.camera_to_world[view]
        turned = apply_rotation(pose, across)
        by_focal = apply_rotation(pose, across * across.new_tensor([-1.0, -1.0, 0.0]))
        return turned + pose[:, :3, 3], turned, by_focal

    def scales_from_masks(self, poses: Poses) -> Tensor:
        """Logarithms [V] of factors with which every view's points come to lie on the visual hull.

        A surface lies behind the hull's and touches it in places: the factor is the largest that a view's
        rays ask for to enter the hull, but for outliers.
        """
        view = self.chosen[:, 0]
        world, from_camera, _ = self.world(poses, self.chosen)
        partner = self.partners[view]  # [M, J]
        tried = torch.linspace(-_MAX_LOG_SCALE, _MAX_LOG_SCALE, _SCALES, dtype=world.dtype)
        entry = torch.full_like(world[:, 0], torch.nan)
        for log_scale in tried.flip(0).tolist():
            at = world + from_camera * math.expm1(log_scale)
            at = at[:, None].expand(-1, partner.shape[1], 3)
            pixel, _ = self.project(poses, partner.reshape(-1), at.reshape(-1, 3))
            distance = bilinear(self.fields[..., :1], partner.reshape(-1), pixel).reshape(partner.shape)
            entry = entry.masked_fill((distance < _TOLERANCE).all(1), log_scale)
        unknown = entry.new_full((1,), torch.nan)  # a view without points has nothing else
        found = [
            torch.cat([entry[view == index], unknown]).nanquantile(_TOUCHING)
            for index in range(len(poses.log_scale))
        ]
        return torch.stack(found).nan_to_num()

    def project(self, poses: Poses, view: Tensor, world: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [M, 2] of `world` points [M, 3] in the views `view` [M], and camera coordinates [M, 3]."""
        pose = poses.camera_to_world[view]
        local = apply_rotation(pose.transpose(1, 2), world - pose[:, :3, 3])
        z = (-local[:, 2]).clamp(min=1e-6)
        focal = self.focal[view] * poses.log_focal.exp()
        flip = local.new_tensor([1.0, -1.0])
        return local[:, :2] * flip / z[:, None] * focal + self.principal[view], local


def agreement(level: Level, poses: Poses, gate: float, *, rims: bool = True) -> list[Rows]:
    """Residuals of the views at a level: depth, colour, points outside masks and, where wanted, rims.

    Args:
        level: The views.
        poses: Where they stand.
        gate: Points further than this from the partner's surface, pixels, are taken for another surface.
        rims: Whether some point must reach every silhouette. Where few views have depth, none may
            have been measured there.
    """
    owner = level.chosen[:, 0]
    partner = level.partners[owner]  # [M, J]
    count = partner.shape[1]
    index = level.chosen.repeat_interleave(count, 0)
    pairs = Pairs(level, poses, index, partner.reshape(-1)).in_image()
    near, depth = _depth_rows(pairs, gate)
    parts = [depth, _color_rows(pairs.only(near)), _outside_rows(pairs, gate)]
    return [*parts, _rim_rows(level, poses, gate)] if rims else parts


class Pairs:
    """R measured points of owners, seen by partners.

    Args:
        level: The views.
        poses: Where they stand.
        index: [R, 3] int64: owner, row and column of the points.
        partner: [R] int64.
        world: The points and their derivatives by depth scale and focal length, each [R, 3], where the
            points are not measured ones.
    """

    def __init__(
        self,
        level: Level,
        poses: Poses,
        index: Tensor,
        partner: Tensor,
        world: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        self.level, self.poses = level, poses
        self.index, self.partner = index, partner
        self.world, self.by_scale, self.by_focal = world or level.world(poses, index)
        self.pixel, self.local = level.project(poses, partner, self.world)

    @property
    def owner(self) -> Tensor:
        """The views that measured the points, [R]."""
        return self.index[:, 0]

    def in_image(self) -> Pairs:
        """Those that the partner's image holds."""
        size = self.pixel.new_tensor([self.level.width, self.level.height])
        seen = (self.local[:, 2] < 0) & ((self.pixel > 0) & (self.pixel < size)).all(1)
        return self.only(seen)

    def only(self, chosen: Tensor) -> Pairs:
        """Those where `chosen` [R] is set."""
        made = object.__new__(Pairs)
        made.level, made.poses = self.level, self.poses
        for name in ("index", "partner", "world", "by_scale", "by_focal", "pixel", "local"):
            setattr(made, name, getattr(self, name)[chosen])
        return made

    def sampled(self) -> Tensor:
        """The partner's fields at the points, [R, 12]."""
        return bilinear(self.level.fields, self.partner, self.pixel)

    def silhouette(self) -> Tensor:
        """The partner's distance to its silhouette at the points, [R]."""
        return bilinear(self.level.fields[..., :1], self.partner, self.pixel)[:, 0]

    def by_image(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives by the world point [R, 3] and the focal length [R] from those by the pixel [R, 2]."""
        z = -self.local[:, 2].clamp(max=-1e-6)
        focal = self.level.focal[self.partner] * self.poses.log_focal.exp()
        along = gradient * focal / z[:, None] * gradient.new_tensor([1.0, -1.0])  # by camera x and y
        forward = (along * self.local[:, :2]).sum(1) / z
        by_world = apply_rotation(
            self.poses.camera_to_world[self.partner], torch.cat([along, forward[:, None]], 1)
        )
        return by_world, (gradient * (self.pixel - self.level.principal[self.partner])).sum(1)

    def rows(self, residual: Tensor, weight: Tensor, by_world: Tensor, by_focal: Tensor) -> Rows:
        """Rows from derivatives by the owner's point; what the partner adds by itself comes on top."""
        torque = torch.linalg.cross(self.world - self.poses.center, by_world)
        jacobian = residual.new_zeros(len(residual), LOCAL)
        jacobian[:, _OWNER] = torch.cat([torque, by_world], 1)
        jacobian[:, _PARTNER] = -jacobian[:, _OWNER]
        jacobian[:, _OWNER_SCALE] = (by_world * self.by_scale).sum(1)
        jacobian[:, _FOCAL] = (by_world * self.by_focal).sum(1) + by_focal
        return Rows(residual, jacobian, weight, self.owner, self.partner)


def _depth_rows(pairs: Pairs, gate: float) -> tuple[Tensor, Rows]:
    """Distances from the partner's planes; also which pairs see the same surface, [R]."""
    level, poses, view = pairs.level, pairs.poses, pairs.partner
    column = pairs.pixel[:, 0].long().clamp(0, level.width - 1)
    row = pairs.pixel[:, 1].long().clamp(0, level.height - 1)
    found = torch.stack([view, row, column], 1)
    plane, plane_by_scale, plane_by_focal = level.world(poses, found)
    pose = poses.camera_to_world
    normal = apply_rotation(pose[view], level.normals[view, row, column])
    own = apply_rotation(pose[pairs.owner], level.normals[tuple(pairs.index.unbind(1))])
    pixel = (-pairs.local[:, 2]).clamp(min=1e-6) * level.pixel[view]
    distance = (normal * (pairs.world - plane)).sum(1) / pixel
    # Beside the plane's point a curved surface leaves the plane: what is compared must be near in space.
    beside = torch.linalg.vector_norm(pairs.world - plane, dim=1) / pixel
    same = (distance.abs() < gate) & (beside < 2 * gate) & ((normal * own).sum(1) > _FACING)
    normal = normal / pixel[:, None] / DEPTH_SIGMA
    weight = (1 - (distance / gate).square()).clamp(min=0).square()
    none = torch.zeros_like(distance)
    rows = pairs.rows(distance / DEPTH_SIGMA, weight, normal, none)
    rows.jacobian[:, _PARTNER_SCALE] = -(normal * plane_by_scale).sum(1)
    rows.jacobian[:, _FOCAL] -= (normal * plane_by_focal).sum(1)
    return same, _only(rows, same)


def _color_rows(pairs: Pairs) -> Rows:
    """Differences of the three colours of points that both views see."""
    own = pairs.level.fields[tuple(pairs.index.unbind(1))]
    found = pairs.sampled()
    clear = (own[:, 0] < -_MARGIN) & (found[:, 0] < -_MARGIN)
    pairs, own, found = pairs.only(clear), own[clear], found[clear]
    parts = []
    for channel in (1, 2, 3):
        residual = (found[:, channel] - own[:, channel]) / _COLOR_SIGMA
        by_world, focal = pairs.by_image(found[:, [4 + channel, 8 + channel]] / _COLOR_SIGMA)
        weight = 1 / (1 + (residual / 2).square()).square()
        parts.append(pairs.rows(residual, weight, by_world, focal))
    return joined(parts)


def _outside_rows(pairs: Pairs, gate: float) -> Rows:
    """Distances outside the partner's mask."""
    outside = pairs.silhouette() > _TOLERANCE
    return silhouette_rows(pairs.only(outside), gate, _TOLERANCE)


def _rim_rows(level: Level, poses: Poses, gate: float) -> Rows:
    """For samples of every mask's rim: the distance of the outermost point near it."""
    world = level.world(poses, level.all)
    parts = [_no_rows(world[0])]
    for view, rim in enumerate(level.rims):
        seen = torch.isin(level.all[:, 0], level.partners[view])
        index, points = level.all[seen], (world[0][seen], world[1][seen], world[2][seen])
        pairs = Pairs(level, poses, index, torch.full_like(index[:, 0], view), points).in_image()
        pairs = pairs.only(pairs.silhouette().abs() < gate)
        if not len(pairs.owner):
            continue
        distance, nearest = torch.cdist(rim.double(), pairs.pixel).min(1)
        pairs = pairs.only(nearest[distance < gate + OUTWARDS])
        parts.append(silhouette_rows(pairs, gate, 0.0))
    return joined(parts)


def silhouette_rows(pairs: Pairs, gate: float, tolerance: float) -> Rows:
    """Distances to the partner's silhouette, positive outside, less `tolerance` (pixels)."""
    found = pairs.sampled()
    distance = found[:, 0] - tolerance
    by_world, focal = pairs.by_image(found[:, [4, 8]] / RIM_SIGMA)
    weight = 1 / (1 + (2 * distance / gate).square()).square()
    return pairs.rows(distance / RIM_SIGMA, weight, by_world, focal)


def mean_square(rows: Rows) -> float:
    """Mean square of residuals, in variances; 0 without any."""
    return float(rows.residual.square().clamp(max=_CAP**2).sum()) / max(1, len(rows.residual))


def _only(rows: Rows, chosen: Tensor) -> Rows:
    return Rows(*(getattr(rows, name)[chosen] for name in Rows.__dataclass_fields__))


def _no_rows(like: Tensor) -> Rows:
    empty = like.new_zeros(0)
    views = torch.zeros(0, dtype=torch.int64, device=like.device)
    return Rows(empty, like.new_zeros(0, LOCAL), empty, views, views)


def joined(parts: list[Rows]) -> Rows:
    """All rows in one; at least one part."""
    return Rows(*(torch.cat([getattr(p, name) for p in parts]) for name in Rows.__dataclass_fields__))


def apply_rotation(matrix: Tensor, vector: Tensor) -> Tensor:
    """Upper left 3x3 of `matrix` [..., 4, 4] times `vector` [..., 3]."""
    return (matrix[..., :3, :3] @ vector[..., None])[..., 0]


def _central_differences(fields: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of [V, C, H, W] along x and y, per pixel."""
    padded = F.pad(fields, (1, 1, 1, 1), mode="replicate")
    return (
        (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2,
        (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2,
    )


def _rim(field: Tensor, gx: Tensor, gy: Tensor) -> Tensor:
    """Points [C, 2] a little outside the silhouette of a signed distance [H, W], not at the image's border.

    Of points that are spread over the object the outermost is the nearest to these.
    """
    inside = (field < 0) & (field > -1)
    inside[[0, -1]] = False
    inside[:, [0, -1]] = False
    row, column = inside.nonzero(as_tuple=True)
    normal = F.normalize(torch.stack([gx[inside], gy[inside]], 1), dim=1)
    return torch.stack([column, row], 1) + 0.5 + (OUTWARDS - field[inside])[:, None] * normal


def bilinear(fields: Tensor, view: Tensor, pixel: Tensor) -> Tensor:
    """Interpolated `fields` [V, H, W, C] of the views `view` [R] at `pixel` [R, 2]: [R, C]."""
    height, width = fields.shape[1:3]
    at = pixel - 0.5
    low = at.floor()
    part = at - low
    x0, y0 = low[:, 0].long(), low[:, 1].long()
    result = fields.new_zeros(len(view), fields.shape[3])
    for dy in (0, 1):
        for dx in (0, 1):
            share = (part[:, 0] if dx else 1 - part[:, 0]) * (part[:, 1] if dy else 1 - part[:, 1])
            value = fields[view, (y0 + dy).clamp(0, height - 1), (x0 + dx).clamp(0, width - 1)]
            result = result + share[:, None] * value
    return result
