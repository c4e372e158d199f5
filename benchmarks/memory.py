"""Shared by benchmarks of memory-bound work: glibc told to keep its memory, and how much a job needs at its peak."""

import argparse
import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def keep_memory() -> None:
    """Tell glibc to give no memory back and to map none apart: a tensor's pages are then faulted in once."""
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
        mallopt(parameter, value)


def arguments(description: str | None, quick: str) -> argparse.Namespace:
    """`--quick` and `--allocator` of a benchmark; without the latter it is run once under each, and ends here.

    Args:
        description: of the benchmark.
        quick: what its quick size is.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{quick}: shows that it runs, measures nothing")
    parser.add_argument("--allocator", choices=("stock", "kept"), help="one of them, in this process (default: both)")
    args = parser.parse_args()
    if args.allocator is None:
        for allocator in ("stock", "kept"):
            subprocess.run([sys.executable, *sys.argv, "--allocator", allocator], check=True)
        sys.exit()
    if args.allocator == "kept":
        keep_memory()
    return args


def growth(job: Callable[[], object]) -> int:
    """Bytes by which the resident set grows at its peak while a job runs."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")
    job()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
