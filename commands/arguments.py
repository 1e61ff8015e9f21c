"""The arguments that several commands share."""

from __future__ import annotations

import argparse


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the config file and the settings that override it."""
    parser.add_argument("config", help="a YAML file, or the name of one in configs/")
    add_overrides(parser)


def add_final(parser: argparse.ArgumentParser) -> None:
    """Add `--final`, which is short for a setting, so that it is in the config of the run, too."""
    parser.add_argument(
        "--final",
        action="append_const",
        dest="set",
        default=[],
        const="report_on=test",
        help="report on the test questions, which `report_on: dev` leaves alone; it is recorded",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the folder of an existing run."""
    parser.add_argument("run", help="the folder of the run, or its URI")


def add_take_over(parser: argparse.ArgumentParser) -> None:
    """Add `--take-over`, for commands that hold a run while they work on it."""
    parser.add_argument(
        "--take-over", action="store_true", help="take the run from a command that holds it"
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add `--set`, which overrides settings of the config."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=value", help="override one setting"
    )
