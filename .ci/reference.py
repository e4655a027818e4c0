"""Write the reference tables of README.md from the code that they describe: `make reference`.

With `--check` nothing is written; the exit code says whether the tables are up to date.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from consumer.option_table import leaves
from consumer.settings import ENV_PREFIX, Settings
from schemas.errors import CODES
from schemas.events import Event, JobData
from schemas.health import Health
from schemas.jobs import BaseJob
from schemas.options import CommonOptions, NvdiffrecOptions, ReconviagenOptions
from schemas.quality import QualityReport
from schemas.results import JobRecord, Manifest

README = Path(__file__).resolve().parent.parent / "README.md"


def main() -> int:
    """Rewrite or check the tables."""
    old = README.read_text()
    new = old
    for name, make in TABLES.items():
        begin, end = f"<!-- begin generated {name} -->", f"<!-- end generated {name} -->"
        if begin not in new or end not in new:
            sys.stderr.write(f"README.md lacks the marks of {name}\n")
            return 1
        head, _, rest = new.partition(begin)
        new = f"{head}{begin}\n{make()}\n{end}{rest.partition(end)[2]}"
    if "--check" in sys.argv:
        if new != old:
            sys.stderr.write("README.md's tables are out of date: make reference\n")
        return int(new != old)
    README.write_text(new)
    return 0


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def job_fields() -> str:
    """The fields of a job message, the model's own two first."""
    rows = [
        ("`model`", "required", "`nvdiffrec` or `reconviagen`."),
        ("`options`", "`{}`", "See the tables below."),
    ]
    return table(
        ("Field", "Default", "Meaning"),
        [(f"`{name}`", _default(field), _text(field)) for name, field in BaseJob.model_fields.items()] + rows,
    )


def options(model: type[BaseModel], skip: type[BaseModel] | None = None) -> Callable[[], str]:
    """The options of a model, nested ones with dotted names."""

    def make() -> str:
        known = set() if skip is None else set(skip.model_fields)
        rows = [
            (f"`{name}`", _default(field), _text(field))
            for name, field in leaves(model)
            if name.split(".")[0] not in known
        ]
        return table(("Option", "Default", "Meaning"), rows)

    return make


def events() -> str:
    """Every event with what it carries beside the common fields."""
    rows = []
    for kind in get_args(Event):
        data = kind.model_fields["data"].annotation
        base = JobData if issubclass(data, JobData) else BaseModel
        own = [name for name in data.model_fields if name not in base.model_fields]
        rows.append((f"`{kind.model_fields['type'].default}`", _first_line(data), _names(own)))
    return table(("Event", "Says", "Own fields of `data`"), rows)


def event_fields() -> str:
    """What every job event carries."""
    rows = [(f"`{name}`", _text(field)) for name, field in JobData.model_fields.items()]
    return table(("Field of `data`", "Meaning"), rows)


def errors() -> str:
    """The error codes."""
    rows = [
        (f"`{code}`", str(info.http_status), "yes" if info.retryable else "no", info.summary)
        for code, info in CODES.items()
    ]
    return table(("Code", "HTTP", "Retried", "Meaning"), rows)


def settings() -> str:
    """The environment variables."""
    rows = [
        (f"`{ENV_PREFIX}{name.upper()}`", _setting_default(name, field), _text(field))
        for name, field in Settings.model_fields.items()
    ]
    rows += [
        ("`RECON_LOG_FORMAT`", "`text`", "Form of log lines: `text` or `json`."),
        ("`RECON_LOG_LEVEL`", "`INFO` for a worker", "Least level that is logged."),
    ]
    return table(("Variable", "Default", "Meaning"), rows)


def document(model: type[BaseModel]) -> Callable[[], str]:
    """The fields of a result document."""

    def make() -> str:
        rows = [(f"`{name}`", _text(field)) for name, field in model.model_fields.items()]
        return table(("Field", "Meaning"), rows)

    return make


TABLES: dict[str, Callable[[], str]] = {
    "job": job_fields,
    "common options": options(CommonOptions),
    "nvdiffrec options": options(NvdiffrecOptions, skip=CommonOptions),
    "reconviagen options": options(ReconviagenOptions, skip=CommonOptions),
    "events": events,
    "event fields": event_fields,
    "health": document(Health),
    "errors": errors,
    "job.json": document(JobRecord),
    "manifest.json": document(Manifest),
    "quality.json": document(QualityReport),
    "settings": settings,
}


def _text(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is PydanticUndefined:
        return {"uuid4": "a new one", "utc_now": "now"}.get(
            getattr(field.default_factory, "__name__", ""), "`{}`"
        )
    return f"`{json.dumps(field.default, default=str)}`"


def _setting_default(name: str, field: FieldInfo) -> str:
    special = {
        "worker_id": "host name and process id",
        "work_root": "`recon` in the system's temporary folder",
        "amqp_url": "`amqp://guest:guest@localhost:5672/`",
    }
    if name in special:
        return special[name]
    return "" if field.default is None else f"`{field.default}`"


def _first_line(model: type[Any]) -> str:
    return re.sub(r"\s+", " ", (model.__doc__ or "").split("\n\n")[0]).strip()


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    sys.exit(main())
