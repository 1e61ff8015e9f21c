"""The command itself: its version, its configs by name, its launcher, and a Python without it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import regenesis
from cluster.errors import InputError
from commands.version import commit, version
from pipelines.config import CONFIGS, find_config

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def test_version_names_the_application_and_its_stack(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        regenesis.main(["--version"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"regenesis {version()}")
    assert "ray 2.60.0" in shown


def test_commit_is_unknown_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit() is None


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml"])
def test_shipped_config_is_found_by_name_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == CONFIGS / "quickstart.yaml"


def test_file_of_ones_own_goes_before_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert find_config("quickstart") == CONFIGS / "quickstart.yaml"
    (tmp_path / "quickstart.yaml").touch()
    assert find_config("quickstart.yaml") == Path("quickstart.yaml")


def test_wrong_name_is_told_the_right_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no config file quickstat.*quickstart"):
        find_config("quickstat")
    for path in ("mine.yaml", "other/quickstart.yaml", "/nowhere/quickstart.yaml"):
        assert find_config(path) == Path(path)  # whose reader says what is there


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with an environment, as `make setup` leaves it, and a driver that tells."""
    program = tmp_path / "checkout" / ".venv" / "bin"
    program.mkdir(parents=True)
    shutil.copy(REPOSITORY / "commands" / "launcher.sh", program / "regenesis")
    (program / "python").symlink_to(sys.executable)
    (tmp_path / "checkout" / "regenesis.py").write_text("import sys; print('ran', *sys.argv[1:])")
    return tmp_path / "checkout"


def test_command_runs_its_checkout_from_any_folder(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / "regenesis"
    link.symlink_to(checkout / ".venv" / "bin" / "regenesis")
    for command in (checkout / ".venv" / "bin" / "regenesis", link):
        ran = subprocess.run(
            [command, "run", "a b"], cwd="/", capture_output=True, text=True, timeout=60, check=True
        )
        assert ran.stdout == "ran run a b\n"


def test_python_without_the_packages_gets_one_sentence() -> None:
    # -I and -S: neither this environment's packages nor those of a user.
    command = [sys.executable, "-I", "-S", str(REPOSITORY / "regenesis.py"), "run", "quickstart"]
    isolated = (
        f"import sys, runpy; sys.argv = {command[3:]}; sys.path.insert(0, {str(REPOSITORY)!r})"
    )
    ran = subprocess.run(
        [*command[:3], "-c", f"{isolated}; runpy.run_path({command[3]!r}, run_name='__main__')"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 2
    (sentence,) = ran.stderr.splitlines()
    assert "make setup" in sentence
