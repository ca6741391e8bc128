"""Builds minigpt_ext._C, the one extension module; pyproject.toml holds the rest.

MINIGPT_CUDA=auto  CUDA kernels where the torch in use has CUDA and nvcc is there (the default)
MINIGPT_CUDA=1     CUDA kernels, or an error; neither a GPU nor a CUDA build of torch is needed to compile them
MINIGPT_CUDA=0     C++ kernels alone
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
TORCH = "torch>=2.11"
TORCH_TARGET_VERSION = "0x020b000000000000"  # 2.11: the stable ABI that the module keeps to


def add_environments_packages() -> None:
    """pip builds in an isolated environment; what is installed in the real one is found behind its own packages.

    The interpreter itself is asked (-E: without the variables that make the isolation), so that virtual environments,
    --system-site-packages and per-user installations are all answered rightly.
    """
    found = subprocess.run(
        [sys.executable, "-E", "-c", "import sys; print('\\n'.join(sys.path))"],
        capture_output=True,
        text=True,
        check=True,
    )
    sys.path += [path for path in found.stdout.splitlines() if path and path not in sys.path]


add_environments_packages()
try:
    import torch
    from torch.utils import cpp_extension
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    if "egg_info" not in sys.argv:  # pip's question what the build needs; any later step cannot do without torch
        sys.exit(
            f"error: building minigpt_ext needs {TORCH}, and there is none. Install it first: pip install '{TORCH}'"
        )
    setup(setup_requires=[TORCH])
    sys.exit()


def cuda_home() -> Path | None:
    """The folder of the CUDA toolkit, as nvcc itself tells it: the nvcc on PATH may be a wrapper or a link."""
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [shutil.which("nvcc", path=f"{folder}/bin") for folder in folders[:2] if folder]
    candidates += [shutil.which("nvcc"), shutil.which("nvcc", path=f"{folders[2]}/bin")]
    for nvcc in filter(None, candidates):
        plan = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
        if top := re.search(r"^#\$ (?:_TOP_|TOP)=(.*)$", plan, re.MULTILINE):
            return Path(top[1].strip()).resolve()
    return None


def chosen_cuda() -> Path | None:
    choice = os.environ.get("MINIGPT_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"error: MINIGPT_CUDA must be auto, 0 or 1, got {choice!r}")
    if choice == "0" or (choice == "auto" and torch.version.cuda is None):
        return None
    home = cuda_home()
    if home is None and choice == "1":
        sys.exit(
            "error: MINIGPT_CUDA=1, but no nvcc was found under CUDA_HOME, on PATH or in /usr/local/cuda. "
            "Install the CUDA toolkit (12.0 or later), or build without CUDA: MINIGPT_CUDA=0"
        )
    return home


def toolkit_version(home: Path) -> tuple[int, int]:
    text = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = re.search(r"release (\d+)\.(\d+)", text).groups()
    return int(major), int(minor)


def architectures(toolkit: tuple[int, int]) -> str:
    """Device code for Ampere, Hopper and Blackwell, and PTX for what comes later, as far as the toolkit knows them."""
    known = ["8.0", "9.0a"] + (["10.0"] if toolkit >= (12, 8) else [])
    return ";".join(known) + "+PTX" if known[-1] == "10.0" else "8.0+PTX;9.0a"


class Build(cpp_extension.BuildExtension):
    """torch's BuildExtension, in a build folder that stays, so that a second build compiles only what changed."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = str(ROOT / "build" / f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}")

    def build_extensions(self) -> None:
        self.check_tools()
        for extension in self.extensions:
            extension.include_dirs.insert(0, str(self.pybind11_headers()))
        self.remove_stale_cuda_objects()
        super().build_extensions()

    def check_tools(self) -> None:
        missing = [name for name in ("pybind11", "ninja") if importlib.util.find_spec(name) is None]
        if missing:
            sys.exit(
                f"error: building without isolation needs {' and '.join(missing)} in the environment. Install what the "
                "build uses first: pip install setuptools ninja pybind11"
            )
        compiler = (os.environ.get("CXX") or "c++").split()[0]
        if not shutil.which(compiler):
            sys.exit(
                f"error: no C++ compiler: {compiler!r} is not on PATH. Install one (Debian, Ubuntu: apt install g++; "
                "Fedora: dnf install gcc-c++; macOS: xcode-select --install), or name yours in CXX"
            )
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            sys.exit(
                "error: Python's headers (Python.h) are missing. Install them "
                "(Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)"
            )

    @staticmethod
    def pybind11_headers() -> Path:
        """A copy in the build folder: the path of an isolated build is another one each time, and would rebuild all."""
        import pybind11

        kept = ROOT / "build" / f"pybind11-{pybind11.__version__}"
        if not kept.exists():
            fresh = kept.with_name(f"{kept.name}.{os.getpid()}")
            shutil.copytree(pybind11.get_include(), fresh)
            fresh.rename(kept)
        return kept

    def remove_stale_cuda_objects(self) -> None:
        """On a CPU build of torch its ninja rules do not see the headers of .cu files; so we look ourselves."""
        for source in (Path(s) for e in self.extensions for s in e.sources if s.endswith(".cu")):
            compiled = Path(self.build_temp, source).with_suffix(".o")
            newest = max(file.stat().st_mtime for file in {ROOT / source, *included_files(ROOT / source)})
            if compiled.exists() and newest > compiled.stat().st_mtime:
                compiled.unlink()


def included_files(source: Path) -> set[Path]:
    """The project's own headers that a source includes, directly or through others."""
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        file = waiting.pop()
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', file.read_text(), re.MULTILINE):
            header = (file.parent / name).resolve()
            if header.exists() and header not in found:
                found.add(header)
                waiting.append(header)
    return found


def extension():
    emulator = ROOT / "csrc" / "emulator"  # a library of its own, built when it is first asked for
    sources = sorted(source for source in ROOT.glob("csrc/**/*.cpp") if emulator not in source.parents)
    macros = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)]
    cxx = ["-O3", "-g0", "-std=c++20", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall"]
    # Wide vectors are only passed between functions that are inlined; g++ errs on vector types and on std::optional.
    cxx += ["-Wno-psabi", "-Wno-ignored-attributes", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"]
    nvcc, link, cuda = [], ["-pthread"], {}
    if home := chosen_cuda():
        toolkit = toolkit_version(home)
        archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", architectures(toolkit))
        # The module links CUDA's runtime statically and includes no torch header under nvcc, so that torch's CUDA (if
        # it has any) and the toolkit need not be of one version.
        cpp_extension.CUDA_HOME = str(home)
        cpp_extension._check_cuda_version = lambda *_: None
        sources += sorted(ROOT.glob("csrc/**/*.cu"))
        version = "{}.{}".format(*toolkit)
        macros += [("MINIGPT_CUDA", "1"), ("MINIGPT_CUDA_TOOLKIT", version), ("MINIGPT_CUDA_ARCHS", archs)]
        nvcc = ["-O3", "-std=c++17", "-lineinfo", "-Xcompiler=-fvisibility=hidden"]
        nvcc += [  # BuildExtension takes the 16-bit types' operators away
            f"-U__CUDA_NO_{name}__"
            for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS")
        ]
        link += ["-Wl,--no-as-needed", "-ltorch"]  # binds the current-stream function, which is a weak symbol
        cuda = {
            "include_dirs": [str(home / "include")],
            "library_dirs": [str(home / "lib64")],
            "libraries": ["cudart_static", "dl", "rt", "pthread"],
        }
    print(f"minigpt_ext: torch {torch.__version__}, CUDA kernels {'from ' + str(home) if home else 'left out'}")
    return cpp_extension.CppExtension(
        "minigpt_ext._C",
        [str(source.relative_to(ROOT)) for source in sources],
        define_macros=macros,
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        extra_link_args=link,
        **cuda,
    )


os.environ.setdefault("MAX_JOBS", str(os.cpu_count()))
setup(ext_modules=[extension()], cmdclass={"build_ext": Build})
