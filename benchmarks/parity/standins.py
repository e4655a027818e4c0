"""Stand-ins for packages that upstream imports and this environment lacks, and which of them ran."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

UNUSED = (
    "dreamsim",
    "einops",
    "gsplat",
    "igraph",
    "lpips",
    "nvdiffrast",
    "plyfile",
    "pymeshfix",
    "pyvista",
    "rembg",
    "torchvision",
    "transformers",
    "utils3d",
    "xatlas",
)
"""Imported by upstream's modules, called by none of those that run here: left out even where installed."""

NOT_CALLED = "not called"


class EasyDict(dict):
    """A dictionary whose keys are attributes too, dictionaries within it included."""

    def __init__(self, items: dict[str, Any] | None = None) -> None:
        super().__init__()
        for name, value in (items or {}).items():
            self[name] = EasyDict(value) if isinstance(value, dict) else value

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class Absent:
    """A name of a package that is left out: may be imported, not called."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"{type(self).__module__} is left out")


class _AbsentModule(ModuleType):
    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Absent,), {"__module__": self.__name__})


class _AbsentFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of packages that are left out, empty."""

    def __init__(self, packages: set[str]) -> None:
        self.packages = packages

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in self.packages:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class StandIns:
    """Modules in place of missing packages, for upstream's code alone: ours chooses by what is installed.

    Real packages are taken if installed; but xformers has no operators for the CPU, and spconv none of
    inference, so there the stand-ins serve.

    Args:
        cuda: Whether upstream runs on CUDA.
    """

    def __init__(self, *, cuda: bool) -> None:
        self.packages = {}
        """For every package in question: real with its version, stand-in, or not called."""
        self._modules: dict[str, ModuleType] = {}
        for name, build in USED.items():
            if _installed(name) and (cuda or name == "easydict"):
                self.packages[name] = f"real, {_version(name)}"
            else:
                self.packages[name] = "stand-in"
                self._modules |= build()
        self.packages |= dict.fromkeys(UNUSED, NOT_CALLED)
        self._finder = _AbsentFinder(set(UNUSED))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within it, `import` finds the stand-ins."""
        covered = {name: sys.modules.pop(name) for name in list(sys.modules) if self._covers(name)}
        sys.modules.update(self._modules)
        sys.meta_path.insert(0, self._finder)
        try:
            yield
        finally:
            sys.meta_path.remove(self._finder)
            self._modules = {name: sys.modules.pop(name) for name in list(sys.modules) if self._covers(name)}
            sys.modules.update(covered)

    def _covers(self, module: str) -> bool:
        return not self.packages.get(module.partition(".")[0], "real").startswith("real")


def _package(name: str, child: str, source: str) -> Callable[[], dict[str, ModuleType]]:
    def build() -> dict[str, ModuleType]:
        package, module = ModuleType(name), importlib.import_module(source)
        package.__path__ = []
        setattr(package, child, module)
        return {name: package, f"{name}.{child}": module}

    return build


def _easydict() -> dict[str, ModuleType]:
    module = ModuleType("easydict")
    vars(module)["EasyDict"] = EasyDict
    return {"easydict": module}


USED: dict[str, Callable[[], dict[str, ModuleType]]] = {
    "easydict": _easydict,
    "spconv": _package("spconv", "pytorch", "benchmarks.parity.standin_spconv"),
    "xformers": _package("xformers", "ops", "benchmarks.parity.standin_xformers"),
}
"""What stands in for the packages that upstream does call."""


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _version(name: str) -> str:
    found = importlib.metadata.packages_distributions().get(name, [])
    return importlib.metadata.version(found[0]) if found else "unknown version"
