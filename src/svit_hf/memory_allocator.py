# SPDX-License-Identifier: Apache-2.0
"""Let the C library keep freed memory, which saves CPU runs most of their page faults.

glibc hands every freed block above some megabytes back to the kernel, and asks for it again one operation later: each
page is cleared and mapped anew. The variables MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ do the same, but have
to be set before the process starts.
"""

import ctypes
import os
import platform


OPT_OUT_VARIABLE = "SVIT_HF_TUNE_MALLOC"

# parameters of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> str:
    """Tell glibc to reuse freed blocks instead of returning them; anywhere else, do nothing.

    The process then stays as large as it has once been. The user's own settings win, and so does
    `SVIT_HF_TUNE_MALLOC=0`.

    Returns:
        What was done, in words.
    """
    if os.environ.get(OPT_OUT_VARIABLE) == "0":
        return f"left alone, because {OPT_OUT_VARIABLE}=0"
    own = [name for name in os.environ if name.startswith("MALLOC_")]
    own += ["GLIBC_TUNABLES"] * ("glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""))
    if own:
        return f"left alone, because the environment sets {', '.join(own)}"
    if platform.libc_ver()[0] != "glibc":
        return "left alone, because this is not glibc"
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_MMAP_THRESHOLD: _LARGEST_INT, _TRIM_THRESHOLD: _LARGEST_INT}
    if not all(mallopt(name, value) for name, value in settings.items()):
        return "left alone, because glibc refuses the settings"
    return f"tuned: freed memory is kept ({OPT_OUT_VARIABLE}=0 turns this off)"
