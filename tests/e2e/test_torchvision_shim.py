"""The torchvision shim: it mends a library that does not fit, leaves a whole one alone, and costs a start nothing.

Each case runs in a process of its own on a stand-in package, since an operator can be defined only once per process.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

NEEDS_NMS = "import torch\n\n@torch.library.register_fake('torchvision::nms')\ndef fake(*a): ...\n"


def run(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` with the packages in `site` before all others; -S keeps .pth files out."""
    paths = [str(site), *{str(Path(find_spec(name).origin).parents[1]) for name in ("torch", "numpy")}]
    prologue = f"import sys; sys.path[:0] = {paths}\n"
    command = [sys.executable, "-S", "-c", prologue + code]
    return subprocess.run(command, cwd=site, capture_output=True, text=True, check=False)


@pytest.fixture
def site(tmp_path: Path, root: Path) -> Path:
    """A folder with the shim and a torchvision that, as the real one, describes nms when it is imported."""
    shutil.copy(root / "medvista_ray" / "torchvision_shim.py", tmp_path / "shim.py")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(NEEDS_NMS)
    return tmp_path


def test_a_library_that_does_not_load_is_replaced_by_empty_schemas(site: Path) -> None:
    (site / "torchvision" / "_C.so").write_bytes(b"built for another torch")
    code = """
try:
    import torchvision
except RuntimeError as error:
    print(error)
import shim; shim.ensure(); shim.ensure()
import torchvision; print("imported")
"""
    result = run(site, code)
    assert "torchvision::nms does not exist" in result.stdout
    assert result.stdout.splitlines()[-1] == "imported", result.stderr


def test_a_library_that_loads_is_left_alone(site: Path) -> None:
    import numpy

    (whole,) = Path(numpy.__file__).parent.glob("_core/_multiarray_umath*.so")  # any library that loads
    shutil.copy(whole, site / "torchvision" / "_C.so")
    result = run(site, "import shim, torch; shim.ensure(); print(hasattr(torch.ops.torchvision, 'nms'))")
    assert result.stdout.split() == ["False"], result.stderr


def test_the_hook_acts_on_the_import_and_not_on_a_look(site: Path) -> None:
    code = (
        "import shim; shim.hook(); shim.hook()\n"
        "from importlib.util import find_spec; assert find_spec('torchvision'); assert 'torch' not in sys.modules\n"
        "import torchvision; print('imported')"
    )
    result = run(site, code)
    assert result.stdout.split() == ["imported"], result.stderr


def test_no_torchvision_at_all_is_fine(site: Path) -> None:
    shutil.rmtree(site / "torchvision")
    code = "import shim, sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; shim.hook(); shim.ensure()"
    result = run(site, code + "; print('torch' in sys.modules)")
    assert result.stdout.split() == ["False"], result.stderr


def test_the_torchvision_of_this_environment_imports() -> None:
    code = "from medvista_ray import torchvision_shim as s; s.ensure(); import torchvision.transforms.v2 as m; print(m)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "torchvision.transforms.v2" in result.stdout, result.stderr
