"""Lets `import torchvision` succeed where its compiled library does not fit the installed torch.

A CPU torch next to a CUDA torchvision is a common pair: the CPU engine asks for torchvision, and the package index
serves the CUDA build. Its pure-Python transforms work, but its import fails because the operators that it describes
(nms, qnms) were never defined. This module defines their empty schemas first, and only if torchvision's own library
does not load: with a matching pair it changes nothing.

`ensure()` is called by the code that loads models. `install()` (`python -m medvista_ray.torchvision_shim`, run by make)
copies this file into site-packages with a .pth line, so that every process of the environment, engine workers included,
is covered. Invariant: this file stands alone and starts without importing torch, since each interpreter start runs it.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder

_MODULE = "_medvista_torchvision_shim"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[object] = []
"""torch forgets a definition when its Library object is collected."""


def ensure() -> None:
    """Make the next `import torchvision` work. Does nothing if it is absent or whole, or if this was done before."""
    spec = PathFinder.find_spec("torchvision")
    if spec is None:
        return
    import torch

    if hasattr(torch.ops.torchvision, "nms") or _own_library_loads(spec):
        return
    # FRAGMENT, not DEF: a second definition of the namespace, should one ever load, is then no error.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _libraries.append(library)


def _own_library_loads(spec: ModuleSpec) -> bool:
    """Whether torchvision's compiled operators load into this torch (loading twice is free)."""
    from pathlib import Path

    import torch

    for folder in spec.submodule_search_locations or []:
        for path in [*Path(folder).glob("_C*.so"), *Path(folder).glob("_C*.pyd")]:
            try:
                torch.ops.load_library(str(path))
            except OSError:  # built for another torch, or its CUDA libraries are not here
                continue
            return True
    return False


class _EnsureFinder:
    """Import hook: runs `ensure` just before torchvision's own code, and not when torchvision is merely looked for."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: object) -> None:
            ensure()
            execute(module)  # pyright: ignore[reportArgumentType]

        spec.loader.exec_module = exec_module
        return spec


def hook() -> None:
    """Arrange for `ensure` to run before torchvision's first import in this process; imports nothing now."""
    if not any(isinstance(finder, _EnsureFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _EnsureFinder())


def install() -> None:
    """Put a copy of this file and a .pth line that hooks it into this environment's site-packages.

    Raises OSError if that folder cannot be written.
    """
    import sysconfig
    from pathlib import Path

    site = Path(sysconfig.get_path("purelib"))
    (site / f"{_MODULE}.py").write_text(Path(__file__).read_text())
    (site / f"{_MODULE}.pth").write_text(f"import {_MODULE}; {_MODULE}.hook()\n")


if __name__ == "__main__":
    install()
