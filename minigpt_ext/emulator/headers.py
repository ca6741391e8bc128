"""CUDA's headers, which the emulator compiles kernels with: of a toolkit, or of pip's packages."""

import importlib.metadata
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

PACKAGES = ("nvidia-cuda-runtime", "nvidia-cuda-crt", "nvidia-cuda-cccl")
NEEDED = ("cuda_runtime.h", "cuda_bf16.h", "crt/host_defines.h", "nv/target")


def toolkit_folders() -> list[Path]:
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if nvcc := shutil.which("nvcc"):  # it may be a wrapper or a link: its own plan tells where the toolkit is
        plan = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
        if top := re.search(r"^#\$ (?:_TOP_|TOP)=(.*)$", plan, re.MULTILINE):
            homes.append(Path(top[1].strip()).resolve())
    homes.append(Path("/usr/local/cuda"))
    # Since CUDA 13 `nv/target` lies with the rest of CCCL in a folder of its own.
    return [home / "include" / part for home in homes for part in ("", "cccl")]


def package_folders() -> list[Path]:
    folders = []
    for package in PACKAGES:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            for header in NEEDED:
                if file.as_posix().endswith(f"include/{header}") or file.as_posix().endswith(f"include/cccl/{header}"):
                    folders.append(Path(str(file.locate())[: -len(header)]))
    return folders


def folders_of(choice: str) -> tuple[Path, ...]:
    """The folders to search for CUDA's headers. choice: "toolkit", "packages", or "any" for the first there is.

    Raises BuildError where there are none.
    """
    from .build import BuildError

    kinds = {"toolkit": toolkit_folders, "packages": package_folders}
    for kind, folders in kinds.items():
        if choice not in ("any", kind):
            continue
        candidates = list(dict.fromkeys(folders()))
        found = {next((f for f in candidates if (f / header).is_file()), None) for header in NEEDED}
        if None not in found:
            return tuple(sorted(found))
    looked_for = {"any": "neither a CUDA toolkit nor pip's header packages", "toolkit": "no CUDA toolkit"}
    raise BuildError(
        f"the CUDA emulator needs CUDA's headers, and there are {looked_for.get(choice, 'no header packages')}. The "
        f"packages are a few MB and need no GPU: pip install {' '.join(PACKAGES)}"
    )


@cache
def cuda_include_folders() -> tuple[Path, ...]:
    """Those that MINIGPT_CUDA_HEADERS chooses ("toolkit", "packages"; "any" unless set). Raises BuildError."""
    from .build import BuildError

    choice = os.environ.get("MINIGPT_CUDA_HEADERS", "any")
    if choice not in ("any", "toolkit", "packages"):
        raise BuildError(f"MINIGPT_CUDA_HEADERS must be any, toolkit or packages, got {choice!r}")
    return folders_of(choice)


def cuda_version() -> str:
    """Of those headers, as CUDA writes it: 13000 is 13.0."""
    for folder in cuda_include_folders():
        header = folder / "cuda_runtime_api.h"
        if header.is_file():
            return re.search(r"#define\s+CUDART_VERSION\s+(\d+)", header.read_text(errors="replace"))[1]
    return "unknown"
