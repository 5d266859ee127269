# SPDX-License-Identifier: Apache-2.0
"""Operators in C++ for folded models on a CPU, compiled on the machine that runs them.

`operators.cpp` registers them as `torch.ops.svit_hf_cpp`; `cpp_forms.py` has the layers that call them.
"""

import hashlib
import logging
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import NoReturn

import torch
from torch.utils import cpp_extension

from svit_hf.errors import SViTError
from svit_hf.files import whole_file


logger = logging.getLogger(__name__)

_FLAGS_OF_PROCESSORS = {
    "AVX2": ["-mavx2", "-mfma"],
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"],
}


@cache
def build() -> None:
    """Compile and load the operators; what was compiled before, for this torch and this kind of processor, is kept.

    It is kept where PyTorch keeps extensions: in `TORCH_EXTENSIONS_DIR`, or in the user's cache.

    Raises:
        SViTError: If they cannot run here, or the compiler is missing or fails; the message says why.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    flags = _FLAGS_OF_PROCESSORS.get(capability)
    if flags is None or platform.system() != "Linux":
        _refuse(
            "they were tried on Linux alone, on x86-64 processors with AVX2 or AVX-512; this is "
            f"{platform.system()} on {platform.machine()} ({capability})"
        )
    if capability == "AVX512" and torch.cpu._is_avx512_bf16_supported():
        flags = [*flags, "-mavx512bf16"]
    folder = Path(__file__).parent
    command = [
        cpp_extension.get_cxx_compiler(),
        *("-O3", "-std=c++20", "-shared", "-fPIC"),
        # threads are torch's own: its OpenMP is found through its libraries, and a second one is not linked
        "-fopenmp",
        # vectors are passed between functions of one file, with one set of flags
        *("-Wno-psabi", "-Wno-ignored-attributes"),
        *flags,
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(f"-isystem{path}" for path in cpp_extension.include_paths()),
        str(folder / "operators.cpp"),
        *(f"-L{path}" for path in cpp_extension.library_paths()),
        *("-Wl,--no-as-needed", "-lc10", "-ltorch_cpu"),
    ]
    digest = hashlib.sha256(f"{torch.__version__} {command}".encode())
    for path in sorted(folder.glob("*.[ch]*")):
        digest.update(path.read_bytes())
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    library = Path(root) / "svit_hf" / f"operators-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        logger.info("Compiling operators in C++ for this processor, which takes some ten seconds, once.")
        try:
            library.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(library) as target:
                subprocess.run([*command, "-o", str(target)], check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            said = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr.strip()[-200:])
            _refuse(f"the compiler {command[0]!r} failed with status {error.returncode}: {said}", error)
        except FileNotFoundError as error:
            _refuse(f"the C++ compiler {command[0]!r} was not found; CXX in the environment can name one", error)
        except OSError as error:
            _refuse(
                f"{library.parent} cannot be written ({error}); TORCH_EXTENSIONS_DIR can name another folder", error
            )
    torch.ops.load_library(str(library))


def _refuse(reason: str, cause: Exception | None = None) -> NoReturn:
    raise SViTError(f"`cpp` is True, but the operators in C++ cannot be used: {reason}.") from cause
