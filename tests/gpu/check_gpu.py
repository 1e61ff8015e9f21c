"""How vLLM's CUDA build resolves our engine arguments on simulated cards.

    make check-gpu

installs the GPU stack (9 GB) into a venv and runs this in it. For each shipped config, and for a
few further models, on each number of each card, it resolves `AsyncEngineArgs` into vLLM's own
engine config and prints one line. Nothing is loaded and nothing runs on a card, so this shows what
vLLM accepts and how it fills in what we leave open, not whether it is fast.

vLLM's CUDA extension is linked against the driver's library, which a machine without a card does
not have: a stub with the same names, built with the C compiler, replaces it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE"""


def driver_symbols(package: Path) -> list[str]:
    """The functions of CUDA's driver library that the extensions in a package need."""
    names: set[str] = set()
    for library in package.rglob("*.so"):
        listed = subprocess.run(
            ["nm", "--dynamic", "--undefined-only", library], capture_output=True, text=True
        )
        names |= set(re.findall(r" U (cu[A-Z]\w*)$", listed.stdout, re.MULTILINE))
    return sorted(names)


def write_stub(folder: Path, symbols: list[str]) -> None:
    """A library `libcuda.so.1` whose functions say that there is no card."""
    source = folder / "libcuda.c"
    source.write_text("".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in symbols))
    library = folder / "libcuda.so.1"
    output = ["-o", str(library), str(source)]
    command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", *output]
    subprocess.run(command, check=True)


def check_all() -> int:
    """One process for each card: vLLM keeps in memory what it was told first."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        print("there is no vLLM in this environment; `make check-gpu` makes one", file=sys.stderr)
        return 2
    from tests.cluster.engine_arguments import CARDS

    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        write_stub(Path(folder), driver_symbols(Path(found.origin).parent))
        paths = [folder, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        for name in sys.argv[1:] or CARDS:
            environment = os.environ | {
                "LD_LIBRARY_PATH": os.pathsep.join(paths),
                "PYTHONPATH": str(REPOSITORY),
                "VLLM_PRETENDED_CARD": name,
                "VLLM_PRETENDED_COUNT": "8",
                "VLLM_LOGGING_LEVEL": "ERROR",
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
            }
            program = [sys.executable, "-m", "tests.gpu.check_gpu", "--one-card"]
            failed |= subprocess.run(program, cwd=REPOSITORY, env=environment).returncode
    return failed


def check_card() -> int:
    """The rows of the card that this process pretends to have."""
    import vllm.platforms as platforms

    # Before anything asks for the platform: it is looked for once.
    platforms.resolve_current_platform_cls_qualname = lambda: (
        "tests.gpu.pretended.PretendedPlatform"
    )
    from tests.cluster.engine_arguments import cases

    failed = 0
    for case in cases():
        if case.card == os.environ["VLLM_PRETENDED_CARD"]:
            os.environ["VLLM_PRETENDED_COUNT"] = str(min(case.num_gpus, 8))
            line, is_fine = row(case)
            print(line, flush=True)
            failed |= not is_fine
    return failed


def row(case: Any) -> tuple[str, bool]:
    """What vLLM makes of a case, in one line, and whether it takes it; our own refusal counts as
    taken, since a person gets its sentence."""
    from cluster.errors import InputError

    where = f"{case.name:28} {case.num_gpus:2} x {case.card:8}"
    try:
        fitted = case.fitted()
    except InputError:
        return f"{where} refused by the planner", True
    try:
        config = resolved(case, fitted)
    except Exception as error:  # noqa: BLE001, whatever vLLM raises is the row's text
        reason = " ".join(str(error).split())[:200]
        return f"{where} FAILED: {type(error).__name__}: {reason}", False
    parallel, scheduler = config.parallel_config, config.scheduler_config
    graphs = config.compilation_config
    sizes = graphs.cudagraph_capture_sizes or []
    return (
        f"{where} {fitted.max_workers or 1:2} engines x TP {parallel.tensor_parallel_size} x "
        f"PP {parallel.pipeline_parallel_size}, {scheduler.max_num_seqs:4} sequences, "
        f"{scheduler.max_num_batched_tokens} batched tokens, graphs {graphs.cudagraph_mode.name} "
        f"up to {max(sizes, default=0)}, executor {executor_name(parallel)}, "
        f"context {config.model_config.max_model_len}, {case.cache_tokens(fitted)} KV tokens "
        f"as planned, {config.load_config.load_format}"
    ), True


def executor_name(parallel: Any) -> str:
    backend = parallel.distributed_executor_backend
    return backend if isinstance(backend, str) else getattr(backend, "__name__", "none")


def resolved(case: Any, fitted: Any) -> Any:
    """vLLM's own config for the engine of a case."""
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    from cluster.inference.vllm_engine import all_arguments

    arguments = all_arguments(str(case.shape), fitted)
    # There is a config.json and no tokenizer; nothing is read with one here.
    arguments |= {"skip_tokenizer_init": True}
    return AsyncEngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)


if __name__ == "__main__":
    sys.exit(check_card() if sys.argv[1:] == ["--one-card"] else check_all())
