"""Which software made a result."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

WORKER = "recon-worker"

# What shapes the pixels and triangles of a result; nvdiffrast, xformers, spconv and gsplat are optional.
_LIBRARIES = (
    "torch",
    "numpy",
    "warp-lang",
    "trimesh",
    "scikit-image",
    "xatlas",
    "nvdiffrast",
    "opencv-python-headless",
    "pycolmap",
    "xformers",
    "spconv-cu120",
    "gsplat",
)


def worker_version() -> str:
    """Version of this worker; `unknown` when it runs from a checkout that was never installed."""
    return _installed(WORKER) or "unknown"


def software_versions() -> dict[str, str]:
    """Versions of this worker and of the libraries that shaped the result, where they are installed."""
    found = {name: _installed(name) for name in _LIBRARIES}
    return {WORKER: worker_version()} | {name: v for name, v in found.items() if v is not None}


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
