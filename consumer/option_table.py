"""The options that a job of each model has, read from their schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from schemas.jobs import ModelName
from schemas.options import CommonOptions, NvdiffrecOptions, ReconviagenOptions

OPTIONS: dict[ModelName, type[CommonOptions]] = {
    "nvdiffrec": NvdiffrecOptions,
    "reconviagen": ReconviagenOptions,
}


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """The fields of a schema, those of nested ones with dotted names."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def option_rows(model: ModelName) -> list[tuple[str, str, str]]:
    """Name, default as JSON, and meaning of every option; the model's own come first."""
    rows = {
        name: (name, json.dumps(field.default), " ".join((field.description or "").split()))
        for name, field in leaves(OPTIONS[model])
    }
    common = [rows.pop(name) for name, _ in leaves(CommonOptions)]
    return [*rows.values(), *common]
