"""ReGenesis (arXiv 2410.02108): a language model improves itself by training on its own reasoning.

This is the only driver, on a laptop and under `ray job submit`::

    python regenesis.py run configs/quickstart.yaml
    ray job submit --working-dir . -- python regenesis.py run configs/llama3_8b.yaml

A round is `questions -> paths -> examples -> model -> predictions -> scores`. Each step is a
folder whose manifest is written last; the same command continues with the first one without it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import EARLY_ENDS, InputError, InterruptedRunError
from cluster.events import kept_log, timed
from cluster.notify import announced
from cluster.session import StopRequest, log_folder, ray_session
from cluster.terminal import is_unread, say
from commands.arguments import add_config, add_final, add_take_over
from commands.version import ShowVersion
from pipelines.config import Config, load_config
from pipelines.plan import begin_run, begin_steps, end_run, lay_out_rounds, record_steps
from pipelines.planning.dry_run import dry_run
from pipelines.planning.hardware import prepare
from pipelines.planning.probe import keep_to_budget
from pipelines.run import Run
from pipelines.steps import decision, examples, guidelines, model, paths, predictions, scores
from pipelines.stored_run import StoredRun, resolved_config

COMMANDS = {
    "run": "start or continue a self-improvement run",
    "plan": "generate the first 20 questions and estimate the cost of the whole run",
    "select": "count what other filters would keep of a run's paths; changes no step",
    "show": "show the state of a run, the lineage of a path, or all runs of a folder",
    "watch": "follow a run from another terminal or machine until it ends",
    "analyse": "make the tables behind a report: yields, funnel, coverage, changes",
    "report": "write one HTML file that shows the results of runs, without a network",
    "export": "write the examples and the model of a run as folders that can be shared",
    "judge": "write a blinded sheet of paths whose reasoning a person judges (see docs/REPORT.md)",
    "judge-import": "read back what a person found on a sheet",
    "clean": "remove files that a run no longer needs",
    "tasks": "list the known benchmarks, or show three questions of one as a model sees them",
    "grade": "grade a JSONL file of responses (see docs/GRADING.md)",
    "evaluate": "evaluate any models on any tasks (see docs/EVALUATION.md)",
    "compare": "compare models on the questions that they have in common (see docs/EVALUATION.md)",
    "settings": "list every setting with its kind, values, default and meaning",
    "doctor": "check the machine, the cluster and the storage; exit code 1 when a check fails",
}
"""`commands` has a module for each except `run` (`-` is `_` there), imported when it is called."""

ROUND_STEPS = {
    "paths": paths,  # guideline -> structure -> path for every training question, all graded
    "examples": examples,  # correct paths only, at most k per question
    "model": model,  # fine-tuned on the examples: one model, or one per dataset
    "predictions": predictions,  # greedy answers to the held-out questions
    "scores": scores,  # base and tuned side by side, in domain and out of domain
}
STEPS = ("questions", "guidelines", *ROUND_STEPS)


def improve(run: Run, stop: StopRequest, until: str | None = None) -> None:
    """Run all rounds of self-improvement. Finished steps are skipped; an unfinished step continues.

    The first step, the questions, exists already: `begin_run` creates it before Ray is started."""
    if until == "questions":
        return
    guidelines.make(run, stop)
    if until == "guidelines":
        return
    for round_ in lay_out_rounds(run):
        record_steps(run)
        for name, step in ROUND_STEPS.items():
            with timed("step", round=round_.number, step=name):
                step.make(run, round_, stop)
            if stop.is_set():
                raise InterruptedRunError("stopped between two steps")
            if until in (f"{round_.number}/{name}", name):
                return
        decision.make(run, round_)  # which model goes on, and whether there is a next round
    record_steps(run)


def run(
    config: Config | str | Path, until: str | None = None, *, take_over: bool = False
) -> StoredRun:
    """Start or continue a run; `config` is a YAML file, the name of a shipped one, or a `Config`.

    Returns the run with its tables. Raises the errors of `cluster.errors`, whose exit codes the
    command returns.
    """
    config = config if isinstance(config, Config) else load_config(str(config))
    check_until(until)
    with (
        kept_log("run") as log,
        announced(config.cluster.notify, config.run),
        begin_run(config, log, until, take_over=take_over) as begun,
        ray_session(config.cluster) as stop,
    ):
        say(f"logs: {log_folder()}")
        prepare(begun, stop, until)
        begin_steps(begun)
        keep_to_budget(begun, stop)
        improve(begun, stop, until)
        end_run(begun, until)
    return StoredRun.read(begun.folder)


def load_run(folder: str) -> StoredRun:
    """Open an existing run: `load_run(folder).table("round_0/paths")` is an Arrow table."""
    return StoredRun.read(folder)


# --- the command line --------------------------------------------------------------------------


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `regenesis.py run CONFIG`."""
    add_config(parser)
    add_final(parser)
    add_take_over(parser)
    parser.add_argument(
        "--until", metavar="[ROUND/]STEP", help=f"stop after a step: {', '.join(STEPS)}"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the config and the steps without starting anything",
    )


def run_command(arguments: argparse.Namespace) -> int:
    """Execute `regenesis.py run CONFIG`."""
    check_until(arguments.until)
    config = load_config(arguments.config, arguments.set)
    if arguments.dry_run:
        say(f"{resolved_config(config)}\n{dry_run(config, arguments.until)}")
        return 0
    run(config, arguments.until, take_over=arguments.take_over)
    return 0


def check_until(until: str | None) -> None:
    """Raise `InputError` if `--until` does not name a step."""
    number, _, step = (until or "").rpartition("/")
    of_round = number.isdigit() and step in ROUND_STEPS
    if until is not None and until not in STEPS and not of_round:
        raise InputError(
            f"--until {until}: expected a step, or a round and a step as in 1/paths; "
            f"the steps are {', '.join(STEPS)}"
        )


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line: `command` is the name, `do` the function that executes it."""
    parser = argparse.ArgumentParser(prog="regenesis", description=__doc__.split("\n")[0])
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(dest="command", required=True)
    called = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary)
        if name == "run":
            add_run_arguments(subparser)
            subparser.set_defaults(do=run_command)
        elif name == called:
            command = importlib.import_module(f"commands.{name.replace('-', '_')}")
            command.add_arguments(subparser)
            subparser.set_defaults(do=command.run)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    arguments = parse_arguments(argv)
    try:
        code = int(arguments.do(arguments))
        sys.stdout.flush()  # here, so that a closed pipe is caught below
        return code
    except BrokenPipeError:
        if not is_unread(sys.stdout.fileno()):
            raise
        # Otherwise Python would try to flush the rest again at exit and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except EARLY_ENDS as error:
        say(f"regenesis: {error}", sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        say("regenesis: interrupted", sys.stderr)
        return InterruptedRunError.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
