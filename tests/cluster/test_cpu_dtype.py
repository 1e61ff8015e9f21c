from __future__ import annotations

import platform
from pathlib import Path

import pytest

from cluster import cpu_dtype
from cluster.cpu_dtype import (
    explain_fast_dtype,
    fast_dtype,
    read_flags,
    this_processor_dtype,
    this_processor_flags,
)

# The vector flags that Linux shows for each processor, others left out.
PROCESSORS = {
    "EPYC 9554, Genoa": ("avx2 avx512f avx512bw avx512_bf16 avx512_vnni", "bfloat16"),
    "Xeon 8480, Sapphire Rapids": (
        "avx2 avx512f avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8",
        "bfloat16",
    ),
    "Xeon in a virtual machine that shows AMX only": ("avx2 avx512f amx_bf16", "bfloat16"),
    "Xeon 8380, Ice Lake": ("avx2 avx512f avx512bw avx512_vnni", "float32"),
    "Xeon 8180, Skylake": ("avx2 avx512f avx512bw", "float32"),
    "EPYC 7763, Zen 3": ("avx2 vaes vpclmulqdq", "float32"),
    "Core Ultra, which only converts": ("avx2 avx_vnni avx_ne_convert", "float32"),
    "Graviton 3": ("fp asimd asimdhp bf16 i8mm svebf16", "bfloat16"),
    "Graviton 2": ("fp asimd asimdhp asimddp", "float32"),
    "none that Linux shows": ("", "float32"),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_fast_dtype_is_bfloat16_where_the_processor_multiplies_in_it(name: str) -> None:
    flags, expected = PROCESSORS[name]
    assert fast_dtype(flags.split()) == expected
    assert explain_fast_dtype(flags.split()).startswith(f"{expected}: the processor has ")


def test_read_flags_takes_what_every_core_has() -> None:
    x86 = "processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: fpu avx2 avx512_bf16\n"
    assert read_flags(x86) == {"fpu", "avx2"}
    assert read_flags("processor\t: 0\nFeatures\t: fp asimd bf16\n") == {"fp", "asimd", "bf16"}
    assert read_flags("model name\t: flags\n") == frozenset()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="torch asks for x86 instructions only")
def test_this_processor_dtype_agrees_with_what_torch_finds() -> None:
    import torch

    found = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert this_processor_dtype() == ("bfloat16" if found else "float32")


def test_this_processor_flags_without_linux_are_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu_dtype, "CPU_INFO", tmp_path / "cpuinfo")
    assert this_processor_flags() == frozenset()
    assert this_processor_dtype() == "float32"
