"""Corrections of the two flows by what is known of the object: its surface, and how it looks in the views.

Rendering-aware velocity compensation (ReconViaGen, arXiv 2510.23306): late in the sampling, the data that a
step's velocity leads to are decoded and compared, and the velocity is moved by a few steps of Adam towards
less difference before the step is taken. Two things differ from the paper: features of an encoder at hand
stand in for LPIPS and DreamSim, and coverage and depth are compared as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from models.base import Callback
from models.progress import part
from models.reconviagen.gaussians import Gaussians
from models.reconviagen.image_losses import (
    Encoder,
    patch_directions,
    perceptual_distance,
    structural_similarity,
)
from models.reconviagen.refinement_targets import Targets
from models.reconviagen.sampler import predict_data
from models.reconviagen.splatting import Rendering, render_gaussians

_BETAS = (0.5, 0.9)  # of Adam: five steps leave no time for long memories
_LOSS_SCALE = 1024.0  # keeps gradients within the encoder above the smallest numbers of half precision


@dataclass(frozen=True)
class RefinementConfig:
    """How velocities are corrected.

    Attributes:
        start: Time from which on steps are corrected, in [0, 1]; before, the data are still too vague.
        steps: Of Adam for every step of the sampler.
        learning_rate: Of Adam.
        keep: Weight of the mean change of the velocity.
        limit: Views whose difference in colour is above this are left out: their cameras may be wrong.
        mask: Weight of the mean squared difference in coverage.
        depth: Weight of the mean difference in depth, per model unit.
        depth_cutoff: Differences in depth beyond this give no gradient, model units: another surface.
        size: Side of the renderings, pixels; a multiple of the encoder's patches.
        views_per_pass: Views that are rendered and compared at a time; more are faster and take more memory.
    """

    start: float = 0.5
    steps: int = 5
    learning_rate: float = 0.1
    keep: float = 0.2
    limit: float = 0.8
    mask: float = 1.0
    depth: float = 1.0
    depth_cutoff: float = 0.1
    size: int = 266
    views_per_pass: int = 4


class StructureCorrection:
    """A `Correction` of the structure's flow: the decoded structure should hold the known surface.

    Args:
        decode: Logits of occupancy [R, R, R] of a structure latent; differentiable.
        surface: [R, R, R], 1 where the surface is known to be, from `surface_voxels`.
        seen: [R, R, R] bool, where the structure is drawn away from if there is no surface, from
            `seen_voxels`; what is neither does not count.
        sigma_min: The sampler's.
        config: How.

    Attributes:
        curve: The loss before every step of Adam so far.

    Raises:
        ValueError: no surface is known at all.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        surface: Tensor,
        seen: Tensor,
        sigma_min: float,
        config: RefinementConfig = RefinementConfig(),
    ) -> None:
        if not surface.any():
            raise ValueError("an empty surface would draw the structure to nothing")
        self.curve: list[float] = []
        self._known = surface.bool() | seen
        self._decode, self._surface = decode, surface[self._known].float()
        self._sigma_min, self._config = sigma_min, config

    def __call__(self, x: Tensor, t: float, velocity: Tensor, callback: Callback) -> Tensor:
        """See `models.reconviagen.sampler.Correction`."""
        if t > self._config.start:
            return velocity

        def slope(changed: Tensor, _: Callback) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                start = changed.detach().requires_grad_()
                logits = self._decode(predict_data(x, t, start, self._sigma_min))
                leaf = logits.detach().requires_grad_()
                loss = dice_loss(leaf.sigmoid()[self._known], self._surface)
            return loss.detach(), _pulled_back([logits], torch.autograd.grad(loss, [leaf]), start)

        return _descended(velocity, slope, self._config, callback, "structure", self.curve)


class AppearanceCorrection:
    """A `Correction` of the latent's flow: the Gaussians it leads to should look as the views do.

    Args:
        decode: Gaussians in model space of a latent as the flow has it; differentiable.
        targets: The views.
        encoder: Of image patches, for the perceptual distance.
        sigma_min: The sampler's.
        config: How; its `size` is the targets'.

    Attributes:
        curve: The loss before every step of Adam so far.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], Gaussians],
        targets: Targets,
        encoder: Encoder,
        sigma_min: float,
        config: RefinementConfig = RefinementConfig(),
    ) -> None:
        self.curve: list[float] = []
        self._decode, self._targets, self._encoder = decode, targets, encoder
        self._sigma_min, self._config = sigma_min, config
        with torch.no_grad():
            self._features = torch.cat([patch_directions(encoder, targets[p].images) for p in self._passes()])

    def __call__(self, x: Tensor, t: float, velocity: Tensor, callback: Callback) -> Tensor:
        """See `models.reconviagen.sampler.Correction`."""
        if t > self._config.start:
            return velocity

        def slope(changed: Tensor, tell: Callback) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                start = changed.detach().requires_grad_()
                decoded = self._decode(predict_data(x, t, start, self._sigma_min))
            parts = [getattr(decoded, field.name) for field in fields(Gaussians)]
            loss, gradients = self._compare(parts, tell)
            difference = changed - velocity
            loss = loss + self._config.keep * difference.abs().mean()
            keeping = self._config.keep * difference.sign() / difference.numel()
            return loss, _pulled_back(parts, gradients, start) + keeping

        return _descended(velocity, slope, self._config, callback, "latent", self.curve)

    def _passes(self) -> list[slice]:
        width = self._config.views_per_pass
        return [slice(first, first + width) for first in range(0, len(self._targets), width)]

    def _compare(self, parts: Sequence[Tensor], callback: Callback) -> tuple[Tensor, list[Tensor]]:
        """Mean loss of the views that count, and its gradients at the Gaussians' parts, pass by pass."""
        total, counted = parts[0].new_zeros(()), parts[0].new_zeros(())
        gradients = [torch.zeros_like(each) for each in parts]
        for views in self._passes():
            leaves = [each.detach().requires_grad_() for each in parts]
            with torch.enable_grad():
                losses, counts = self._losses(Gaussians(*leaves), views)
                loss = (losses * counts).sum()
                found = torch.autograd.grad(loss * _LOSS_SCALE, leaves)
            total, counted = total + loss.detach(), counted + counts.sum()
            gradients = [old + new / _LOSS_SCALE for old, new in zip(gradients, found, strict=True)]
            callback(min(1.0, views.stop / len(self._targets)), "latent: comparing with the views", {})
        counted = counted.clamp(min=1)
        return total / counted, [gradient / counted for gradient in gradients]

    def _losses(self, gaussians: Gaussians, views: slice) -> tuple[Tensor, Tensor]:
        """Loss [B] of each view of a pass, and 1 for those that count, else 0."""
        targets = self._targets[views]
        rendering = render_gaussians(gaussians, targets.cameras, gaussians.colors.new_zeros(3))
        # The targets are black beyond the full images, and what is drawn there does not count.
        images = (rendering.color.clamp(0, 1) * targets.inside[..., None]).permute(0, 3, 1, 2)  # [B, 3, S, S]
        looks = (
            (images - targets.images).abs().mean((1, 2, 3))
            + (1 - structural_similarity(images, targets.images))
            + perceptual_distance(self._encoder, images, self._features[views])
        )
        shape = self._config.mask * ((rendering.alpha - targets.masks) * targets.inside).square().mean((1, 2))
        if targets.depths is not None:
            shape = shape + self._config.depth * _depth_loss(rendering, targets.depths, self._config)
        return looks + shape, (looks.detach() <= self._config.limit).to(looks.dtype)


def dice_loss(occupancy: Tensor, target: Tensor) -> Tensor:
    """One minus Dice's coefficient of two occupancies of one shape in [0, 1], smoothed by a voxel.

    Reference: Milletari et al., "V-Net", 3DV 2016.
    """
    return 1 - (2 * (occupancy * target).sum() + 1) / (occupancy.sum() + target.sum() + 1)


def _depth_loss(rendering: Rendering, depths: Tensor, config: RefinementConfig) -> Tensor:
    """Mean difference in z-depth [B] where it was measured and something is drawn."""
    difference = (rendering.depth - depths).abs()
    with torch.no_grad():
        counts = (depths > 0) & (rendering.alpha > 0.5) & (difference < config.depth_cutoff)
    return (difference * counts).sum((1, 2)) / (depths > 0).sum((1, 2)).clamp(min=1)


Slope = Callable[[Tensor, Callback], tuple[Tensor, Tensor]]
"""Loss and its gradient at a velocity; tells the share of the work that is done."""


def _descended(
    velocity: Tensor,
    slope: Slope,
    config: RefinementConfig,
    callback: Callback,
    name: str,
    curve: list[float],
) -> Tensor:
    """The velocity after some steps of Adam; each loss goes to the end of `curve`."""
    changed = velocity.clone()
    optimizer = torch.optim.Adam([changed], lr=config.learning_rate, betas=_BETAS)
    for step in range(config.steps):
        within = part(callback, step / config.steps, (step + 1) / config.steps)
        loss, changed.grad = slope(changed, within)
        optimizer.step()
        curve.append(float(loss))
        within(1.0, f"{name}: correction {step + 1} of {config.steps}", {"loss": curve[-1]})
    return changed.detach()


def _pulled_back(outputs: Sequence[Tensor], gradients: Sequence[Tensor], start: Tensor) -> Tensor:
    """Gradient at `start` from those at a network's outputs, scaled in between as half precision needs it."""
    largest = torch.stack([gradient.abs().amax() for gradient in gradients]).amax().clamp(min=1e-30)
    scaled = [gradient / largest for gradient in gradients]
    (found,) = torch.autograd.grad(list(outputs), [start], scaled)
    return found * largest
