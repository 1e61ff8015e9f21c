"""Code of the user's own, named by its file in a setting: `folder/mine.py:name`.

The file is read once, with the config. Its source then travels with the settings, so that every
process on every node runs the same code and no other node needs the file. It may import installed
packages and this project's modules, but no other file of its folder.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.settings import fingerprint


@dataclass(frozen=True, slots=True)
class OwnCode:
    """A name that a user's file defines, with the text of the file."""

    path: str
    """As the setting has it; another path of the same file is the same code."""
    name: str
    source: str

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"

    @property
    def content(self) -> dict[str, str]:
        """What decides the results, for the fingerprint of a step."""
        return {"name": self.name, "source": fingerprint(self.source)}

    @classmethod
    def read(cls, given: str, name: str | None = None) -> OwnCode:
        """The code at `file.py:name`, or at `file.py` where the `name` is known.

        Raises `InputError` for a file that cannot be read or run, or that has no such name.
        """
        path, _, written = (given, "", name) if name else given.rpartition(":")
        if not path.endswith(".py") or not written or not written.isidentifier():
            raise InputError(f"{given!r} names no code; write it as folder/file.py:name")
        try:
            source = Path(path).expanduser().read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise InputError(f"there is no file {path}; correct the path") from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read ({error}); correct the path") from error
        code = cls(path, written, source)
        code.load()
        return code

    def load(self) -> Any:
        """What the name stands for. Raises `InputError` as `read` does."""
        module = _module(self.path, self.source)
        if not hasattr(module, self.name):
            raise InputError(f"{self.path} does not define {self.name!r}; define it there")
        return getattr(module, self.name)

    def function(self, *arguments: Any, expected: str, **named: Any) -> Callable[..., Any]:
        """A function that can be called so; `expected` shows a user how to define it.

        Raises `InputError`.
        """
        return check_function(self.load(), str(self), expected, *arguments, **named)


def check_function(
    function: Any, shown: str, expected: str, *arguments: Any, **named: Any
) -> Callable[..., Any]:
    """The function, if it is one that takes these arguments. Raises `InputError`."""
    if not callable(function):
        raise InputError(f"{shown} is not a function; define it as {expected}")
    try:
        inspect.signature(function).bind(*arguments, **named)
    except TypeError as error:
        raise InputError(f"{shown} has other parameters ({error}); define it as {expected}") from (
            error
        )
    except ValueError:  # a callable without a signature, such as one that is written in C
        pass
    checked: Callable[..., Any] = function
    return checked


@lru_cache(maxsize=256)
def _module(path: str, source: str) -> types.ModuleType:
    """The module that a source defines, run once in each process."""
    module = types.ModuleType(f"own_{Path(path).stem}_{fingerprint(source)}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses and pickle look it up
    try:
        exec(compile(source, path, "exec"), module.__dict__)  # noqa: S102, the user's own code
    except SyntaxError as error:
        del sys.modules[module.__name__]
        raise InputError(f"{path} is not Python ({error}); correct it") from error
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise InputError(
            f"{path} cannot be run ({type(error).__name__}: {error}); correct it, or install what "
            "it imports"
        ) from error
    return module
