"""`course doctor`: what a working course needs, one line each, with the remedy where it lacks."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from course_utils.assets.catalogue import AssetError
from course_utils.runner import home as home_folder
from course_utils.runner.checkout import REMEDY, other_code

NEEDED_FREE = 3e9  # bytes: archives, unpacked models, and one converted copy


class Finding(NamedTuple):
    """One line: what was looked at, what was found, and what to do if that is a problem."""

    subject: str
    found: str
    remedy: str = ""


def examine(root: Path) -> Iterator[Finding]:
    """Yield a finding for each thing that the course needs."""
    checks: tuple[Callable[[Path], Finding], ...] = (
        python,
        code,
        home,
        packages,
        torch_build,
        gpu,
        kernel,
        assets,
        disk,
    )
    for look in checks:
        try:
            yield look(root)
        except AssetError as error:  # one sentence, the remedy at its end
            what, _, remedy = str(error).rpartition("; ")
            yield Finding(look.__name__.replace("_", " "), what, remedy)
        except Exception as error:  # a broken installation may fail in any way; say so, go on
            text = f"{type(error).__name__}: {error}"
            remedy = "run make course" if home_folder.folder() else home_folder.REMEDY
            yield Finding(look.__name__.replace("_", " "), text, remedy)


def python(root: Path) -> Finding:
    """Version of the interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding("python", version, "" if good else "install Python 3.11 or newer")


def code(root: Path) -> Finding:
    """Whether the code that runs is this checkout's."""
    if told := other_code(root):
        return Finding("code", told, REMEDY)
    return Finding("code", f"course_utils of {root}")


def home(root: Path) -> Finding:
    """The home folder: Jupyter writes into it."""
    folder = home_folder.folder()
    if folder is None:
        return Finding("home", home_folder.MISSING, home_folder.REMEDY)
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    good = os.access(existing, os.W_OK)
    found = str(folder) if good else f"{folder} can't be written"
    return Finding("home", found, "" if good else home_folder.REMEDY)


def pins(root: Path) -> dict[str, str]:
    """The versions of constraints.txt."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version.strip() for name, version in pairs}


def packages(root: Path) -> Finding:
    """The course's own dependencies against the versions it was tested with."""
    pinned = pins(root)
    required = importlib.metadata.requires("llms-measured") or []
    names = [canonicalize_name(Requirement(r).name) for r in required if "extra ==" not in r]
    installed = {name: _version(name) for name in names}
    other = [
        f"{name} is {version or 'missing'}, tested with {pinned[name]}"
        for name, version in installed.items()
        if name in pinned and version != pinned[name]
    ]
    if other:
        return Finding("packages", "; ".join(other), "pip install -c constraints.txt -e '.[dev]'")
    return Finding("packages", f"{len(names)} at the tested versions")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_build(root: Path) -> Finding:
    """Torch's version and threads."""
    import torch

    found = f"{torch.__version__}, {torch.get_num_threads()} threads"
    slow = torch.get_num_threads() < (os.cpu_count() or 1) and "OMP_NUM_THREADS" in os.environ
    remedy = "unset OMP_NUM_THREADS to use every core" if slow else ""
    return Finding("torch", found, remedy)


def gpu(root: Path) -> Finding:
    """CUDA devices that torch sees; none is fine for the cpu profile."""
    import torch

    from course_utils.profiles import verify_device

    if torch.cuda.is_available():
        verify_device("cuda")
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("gpu", ", ".join(names))
    if shutil.which("nvidia-smi"):
        remedy = "install a CUDA build of torch that fits the driver"
        return Finding("gpu", "there is one, but torch does not see it", remedy)
    return Finding("gpu", "none; the cpu profile needs none")


def kernel(root: Path) -> Finding:
    """Whether the kernel named python3, which JupyterLab starts, is this interpreter's."""
    from jupyter_client.kernelspec import KernelSpecManager

    spec = KernelSpecManager().get_kernel_spec("python3")
    program = spec.argv[0]
    named = ("python", "python3", f"python3.{sys.version_info[1]}")  # mean the interpreter itself
    own = program in named or Path(program).absolute() == Path(sys.executable)
    if not own:
        remedy = "start JupyterLab with make lab, or remove that kernel: jupyter kernelspec list"
        return Finding("kernel", f"python3 means {program}, not {sys.executable}", remedy)
    version = importlib.metadata.version("ipykernel")
    return Finding("kernel", f"python3 is this interpreter, ipykernel {version}")


def assets(root: Path) -> Finding:
    """Which models and data are in the cache, by their sizes and times."""
    from course_utils.assets import catalogue
    from course_utils.assets.cache import problems

    cache = catalogue.cache_folder()
    names = catalogue.names()
    missing = [name for name in names if problems(cache / name, catalogue.describe(name).digest)]
    if missing:
        return Finding("assets", f"not in {cache}: {', '.join(missing)}", "course fetch")
    return Finding("assets", f"{len(names)} in {cache}")


def disk(root: Path) -> Finding:
    """Free space where the cache is."""
    from course_utils.assets.catalogue import cache_folder

    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free for the cache"
    short = free < NEEDED_FREE
    remedy = f"free {NEEDED_FREE / 1e9:.0f} GB, or set COURSE_CACHE to a folder with space"
    return Finding("disk", found, remedy if short else "")
