"""The table of differences between published parameter names and ours; what is not in it has one name.

Rules apply to published names. Names that several rules fit take the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from models.reconviagen import vggt, vit


@dataclass(frozen=True)
class Renaming:
    """How the tensors of one published file become the parameters of our network.

    Attributes:
        names: Expressions that match from a published name's start, and what takes the match's place.
        joined: Expressions of published tensors that, one after the other along their first dimension, are
            one of ours, and what takes the match's place.
        ignored: Beginnings of published names that inference has no use for.
    """

    names: tuple[tuple[str, str], ...] = ()
    joined: tuple[tuple[tuple[str, ...], str], ...] = ()
    ignored: tuple[str, ...] = ()

    def sources(self, published: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Our names, each with the published tensors that make it up, in their order."""
        found: dict[str, dict[int, str]] = {}
        for name in published:
            if name.startswith(self.ignored):
                continue
            ours, position = self._place(name)
            # Two names in one place: the second keeps its own name, and is reported as unexpected.
            taken = position in found.setdefault(ours, {})
            found.setdefault(name if taken else ours, {})[position] = name
        return {ours: tuple(parts[i] for i in sorted(parts)) for ours, parts in found.items()}

    def parts(self, published: str) -> int:
        """Number of published tensors of which this one's place in our network is made."""
        return next((len(group) for group, _ in self.joined if _first(group, published) is not None), 1)

    def _place(self, name: str) -> tuple[str, int]:
        for group, ours in self.joined:
            position = _first(group, name)
            if position is not None:
                return re.sub(rf"\A{group[position]}", ours, name), position
        for pattern, ours in self.names:
            if re.match(pattern, name):
                return re.sub(rf"\A{pattern}", ours, name), 0
        return name, 0


def _first(group: tuple[str, ...], name: str) -> int | None:
    return next((i for i, pattern in enumerate(group) if re.match(pattern, name)), None)


SAME = Renaming()
"""The networks of TRELLIS and ReconViaGen have their published names."""

DINOV2 = Renaming(vit.HUGGING_FACE_NAMES, vit.HUGGING_FACE_JOINED, vit.IGNORED_PREFIXES)
"""`facebook/dinov2-with-registers-large`: Hugging Face's names to those of DINOv2's authors."""


def of_vggt(config: vggt.VggtConfig) -> Renaming:
    """`Stable-X/vggt-object-v0-1`: no point is tracked, no patch masked; depths may be left out."""
    return Renaming(ignored=vggt.ignored_prefixes(config))
