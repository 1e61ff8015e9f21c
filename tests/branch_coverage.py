"""Which lines and branches of the product no test has run, Ray's workers and subprocesses included.

    python -m tests.branch_coverage -m "not gpu"

runs pytest with the arguments given, and then prints the lines and branches of each file that never
ran. Every Python process that the tests start measures itself: a `.pth` file in the environment's
`site-packages` starts coverage wherever the variable `REGENESIS_COVERAGE` names a folder for the
data. Ray and the tests kill processes, so each one writes its data every few seconds and not only
at its end. The data of several runs adds up when they are given the same `--data` folder.
"""

from __future__ import annotations

import argparse
import atexit
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = "REGENESIS_COVERAGE"
SAVE_EVERY_S = 5.0
DAEMONS = re.compile(rb"/ray/(_private/(log_)?monitor|dashboard|autoscaler|_private/runtime_env)")
"""Programs of Ray that run none of our code, but would take a third of the processor measured."""


def measure_this_process(folder: str) -> None:
    """Measure this process until it ends. The `.pth` file calls this in each process."""
    if DAEMONS.search(Path("/proc/self/cmdline").read_bytes()):
        return
    measured = _coverage(folder, data_suffix=True)
    measured.start()
    atexit.register(measured.save)

    def keep_saving() -> None:
        while True:
            time.sleep(SAVE_EVERY_S)
            measured.save()

    threading.Thread(target=keep_saving, name="coverage", daemon=True).start()


def _coverage(folder: str, *, data_suffix: bool = False) -> Any:
    import coverage

    measured = coverage.Coverage(
        data_file=str(Path(folder) / "data"),
        data_suffix=data_suffix,
        branch=True,
        config_file=False,
        source=[str(REPOSITORY)],
        omit=[str(REPOSITORY / name / "*") for name in ("tests", "benchmarks", ".venv")],
    )
    # A program that ends before it runs our code would say so on stderr, which tests read.
    measured.set_option("run:disable_warnings", ["no-data-collected", "already-imported"])
    return measured


@contextmanager
def every_process_measured(folder: str) -> Iterator[dict[str, str]]:
    """The environment in which each Python process measures itself into a folder."""
    hook = Path(sysconfig.get_paths()["purelib"]) / "regenesis_coverage.pth"
    hook.write_text(
        f"import os, runpy; os.environ.get('{FOLDER}') and "
        f"runpy.run_path({str(Path(__file__).resolve())!r})"
        f"['measure_this_process'](os.environ['{FOLDER}'])\n"
    )
    try:
        yield os.environ | {FOLDER: folder}
    finally:
        hook.unlink()


def print_what_never_ran(folder: str) -> None:
    """A table of all files: statements, branches, and the lines and branches that never ran."""
    measured = _coverage(folder)
    measured.combine([folder], keep=True)
    measured.report(show_missing=True, skip_covered=True, ignore_errors=True, file=sys.stdout)


def main() -> int:
    """Run pytest with the arguments that this program does not know; returns its exit code."""
    parser = argparse.ArgumentParser(prog="tests.branch_coverage", description=__doc__)
    parser.add_argument("--data", help="a folder for the data; it may hold those of earlier runs")
    own, arguments = parser.parse_known_args()
    folder = own.data or tempfile.mkdtemp(prefix="coverage-")
    Path(folder).mkdir(parents=True, exist_ok=True)
    with every_process_measured(folder) as environment:
        command = [sys.executable, "-m", "pytest", *arguments]
        code = subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode
    print_what_never_ran(folder)
    return code


if __name__ == "__main__":
    sys.exit(main())
