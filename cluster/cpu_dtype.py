"""The number type that a processor computes fastest: bfloat16 where it has the instructions for it.

Example: an EPYC 9554 lists `avx512_bf16` among its flags, so `auto` selects bfloat16 there, which
trains and generates 1.6 to 2.3 times as fast as float32. A processor without such instructions
converts each number to float32 and back, and takes up to four times as long in bfloat16.
Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

FastDtype = Literal["bfloat16", "float32"]

BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
"""Flags for dot products in bfloat16, as Linux names them: Intel's AMX, AVX-512 of Intel and AMD,
and ARM. Instructions that only convert, such as `avx_ne_convert`, make nothing faster."""

CPU_INFO = Path("/proc/cpuinfo")


def fast_dtype(cpu_flags: Collection[str]) -> FastDtype:
    """The faster of the two types on a processor with these flags of /proc/cpuinfo."""
    return "bfloat16" if _bfloat16_flags(cpu_flags) else "float32"


def explain_fast_dtype(cpu_flags: Collection[str]) -> str:
    """Explain to the user what `fast_dtype` selects, and why."""
    found = _bfloat16_flags(cpu_flags)
    if found:
        return f"bfloat16: the processor has instructions for it ({', '.join(found)})"
    return "float32: the processor has no instructions for bfloat16"


def this_processor_dtype() -> FastDtype:
    """`fast_dtype` of the machine that this process runs on."""
    return fast_dtype(this_processor_flags())


def this_processor_flags() -> frozenset[str]:
    """The flags of this machine's processor; empty on a system other than Linux."""
    try:
        return read_flags(CPU_INFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return frozenset()


def read_flags(cpu_info: str) -> frozenset[str]:
    """The flags in the text of /proc/cpuinfo that all cores share (some ARM chips mix cores)."""
    of_cores = [
        frozenset(value.split())
        for name, _, value in (line.partition(":") for line in cpu_info.splitlines())
        if name.strip() in ("flags", "Features")
    ]
    return frozenset.intersection(*of_cores) if of_cores else frozenset()


def _bfloat16_flags(cpu_flags: Collection[str]) -> list[str]:
    return [flag for flag in BFLOAT16_FLAGS if flag in cpu_flags]
