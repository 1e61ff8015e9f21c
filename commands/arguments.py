"""The arguments that several commands share."""

from __future__ import annotations

import argparse


def add_config(parser: argparse.ArgumentParser) -> None:
    """The config file, and what is laid over it."""
    parser.add_argument("config", help="a YAML file, or the name of one in configs/")
    add_overrides(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    """The folder of a run that was begun."""
    parser.add_argument("run", help="the folder of the run, or its URI")


def add_take_over(parser: argparse.ArgumentParser) -> None:
    """For commands that hold a run while they work on it."""
    parser.add_argument(
        "--take-over", action="store_true", help="take the run from a command that holds it"
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Settings that are laid over a config."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=value", help="override one setting"
    )
