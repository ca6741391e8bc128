"""What the C library does with memory that a training step frees."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h; see mallopt(3)


def keep_freed_memory() -> bool:
    """Have glibc keep what this process frees, for its next allocations; False where the C library is another.

    A step allocates and frees the same tens of megabytes again and again. By default glibc maps large blocks anew each
    time and gives them back when they are freed, and the kernel fills each 4 KiB page of them with zeros at its first
    use: a fifth of the CPU time of a float32 step of the medium preset. Memory then stays at the process's peak.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
