"""The state of a run: each step, who holds the run, what it cost, and what is left.

Finished steps are described by their manifests and one listing of their files; unfinished ones by
the index columns of their ledgers. No table is read whole, so a large run takes no longer.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

import pyarrow.compute as pc

from cluster.errors import DamagedFileError, InputError
from cluster.events import read_events
from cluster.inference.progress import format_seconds
from cluster.store.contents import wrong_files
from cluster.store.folder import Folder
from cluster.store.holder import has_ended, last_holder
from cluster.store.ledger import SUMMED, Ledger
from cluster.store.named import folder_to_read
from cluster.store.step import RUN_FILE
from cluster.terminal import format_table
from pipelines.reads_of_test import describe_reads, reads_of_test
from pipelines.rounds.decide import describe_decision
from pipelines.stored_run import StoredRun

State = Literal["missing", "unfinished", "finished", "damaged"]
KINDS = (
    *("questions", "guidelines", "paths", "examples", "model", "predictions", "scores"),
    "decision",
)
_KIND = re.compile(rf"({'|'.join(KINDS)})(?:-.+)?")
UNREADABLE = "not readable"
"""The state of a folder that this user may not read."""
_LOOKING = ("select",)
_LEDGERS = ("paths", "predictions")
_READS = 3
"""How often a ledger is read that another command compacts meanwhile."""
_FACTS = {
    "questions": ("num_questions",),
    "examples": (
        *("num_paths", "num_kept_paths", "num_examples", "num_learned_tokens", "dropped"),
        *("num_preference_pairs", "num_unpaired_preferences"),
    ),
    "model": ("num_examples", "num_steps", "num_tokens", "first_loss", "last_loss", "seconds"),
    "decision": (
        *("adopted", "began_with", "gate", "gate_lines", "gain", "rounds_without_gain"),
        *("measures", "all_generated_tokens", "alarms", "stop"),
    ),
}
"""The facts of a manifest that are shown, by the kind of the step."""
_SHOWN_SCORES = (
    *("split", "domain", "task", "num_questions", "base_strict", "tuned_strict"),
    *("strict_difference", "strict_difference_low", "strict_difference_high"),
)


@dataclass(frozen=True)
class StepState:
    """How far one step is."""

    name: str
    """The folder without its fingerprint, such as `round_0/paths`."""
    folder: str
    """Relative to the run's folder."""
    state: State
    problem: str = ""
    """What is damaged."""
    finished_at: str = ""
    num_questions: int | None = None
    """Questions that the step has to answer; None for a step that answers none."""
    num_done: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Counts and shares, by the kind of the step."""

    @property
    def kind(self) -> str:
        """The kind of the step, such as `paths`."""
        found = _KIND.fullmatch(posixpath.basename(self.name))
        return found[1] if found else self.name


def overview(run: StoredRun) -> dict[str, Any]:
    """All that `show RUN` tells, as JSON values; counts are whole numbers, shares lie in 0 to 1.

    A damaged step is described as such. Raises nothing for a run that another command works on.
    """
    states = step_states(run)
    synthesis = run.config.get("synthesis") or {}
    return {
        "run": run.config.get("run"),
        "folder": run.folder.uri,
        "strategy": synthesis.get("strategy"),
        "model": (run.config.get("model") or {}).get("path"),
        "rounds": run.config.get("rounds"),
        "holder": holder_facts(run.folder),
        "steps": [{"kind": each.kind, **asdict(each)} for each in states],
        "num_generated_tokens": sum(each.facts.get("num_tokens", 0) for each in _ledgers(states)),
        "cost": cost_of(read_events(run.folder)),
        "test_reads": reads_of_test(run.folder),
        "left": [_what_is_left(each) for each in states if each.state != "finished"],
    }


def holder_facts(folder: Folder) -> dict[str, Any]:
    """Who took the run last, and whether that command is known to have ended."""
    holder = last_holder(folder)
    if not holder.epoch:
        return {"state": "none", "who": ""}
    return {"state": "ended" if has_ended(folder, holder) else "holds", "who": str(holder)}


def working_events(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The events without the beginning and end of commands that hold no run: they may fall into
    the time of one that does."""
    return [event for event in events if event.get("command") not in _LOOKING]


def cost_of(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Hours of the commands that held a run and what their GPUs cost, from its events.

    A command that was killed recorded no end; it counts until its last event.
    """
    events = working_events(events)
    paid = [event for event in events if event["event"] in ("generated", "trained")]
    cost: dict[str, Any] = {
        "hours": round(sum(_command_seconds(events)) / 3600, 4),
        "gpu_hours": round(sum(event.get("gpu_hours", 0.0) for event in paid), 4),
    }
    money = [event for event in paid if "money" in event]
    if money:
        cost["money"] = round(sum(event["money"] for event in money), 4)
        cost["currency"] = money[-1].get("currency", "")
    return cost


def _command_seconds(events: Sequence[Mapping[str, Any]]) -> list[float]:
    starts = [n for n, event in enumerate(events) if event["event"] == "command_started"]
    bounds = [*starts, len(events)]
    return [
        (_time(events[end - 1]) - _time(events[start])).total_seconds()
        for start, end in itertools.pairwise(bounds)
    ]


def _time(event: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(str(event["at"]))


# --- steps -------------------------------------------------------------------------------------


def step_states(run: StoredRun) -> list[StepState]:
    """The state of each step that the config which was run last uses, in the order of the run."""
    counts: Sequence[Mapping[str, Any]] = ()
    splits = _asked_splits(run)
    states = []
    for name in run.steps:
        state = _step_state(run.folder, name, counts, splits)
        states.append(state)
        if state.kind == "questions":
            counts = state.facts.get("counts", ())
    return states


def _asked_splits(run: StoredRun) -> Mapping[str, Collection[str]]:
    """By the kind of a step, the splits whose questions it answers."""
    held_out = ("dev",) if run.config.get("report_on") == "dev" else ("dev", "test")
    return {"paths": ("train",), "predictions": held_out}


def _step_state(
    run: Folder,
    folder: str,
    counts: Sequence[Mapping[str, Any]],
    asked_splits: Mapping[str, Collection[str]],
) -> StepState:
    step, empty = run.child(folder), _missing(folder)
    splits = asked_splits.get(empty.kind, ())
    asked = _num_asked(splits, counts) if splits else None
    try:
        manifest = step.manifest()
        if manifest is None:
            return _unfinished(step, empty, asked)
        wrong = wrong_files(step, manifest) if "files" in manifest else []
        facts = _facts(step, empty.kind, manifest)
    except DamagedFileError as error:
        return StepState(empty.name, folder, "damaged", str(error))
    return StepState(
        empty.name,
        folder,
        "damaged" if wrong else "finished",
        wrong[0] if wrong else "",
        manifest.get("finished_at", ""),
        asked,
        facts.get("num_done"),
        facts,
    )


def _missing(folder: str) -> StepState:
    return StepState(folder.rpartition("-")[0], folder, "missing")


def finished_state(run: Folder, folder: str) -> StepState | None:
    """A finished step by its manifest alone, without a look at its other files; None if it is not
    finished. Raises `DamagedFileError`."""
    step, empty = run.child(folder), _missing(folder)
    if (manifest := step.manifest()) is None:
        return None
    facts = _facts(step, empty.kind, manifest)
    finished_at = str(manifest.get("finished_at", ""))
    return replace(empty, state="finished", finished_at=finished_at, facts=facts)


def _num_asked(splits: Collection[str], counts: Iterable[Mapping[str, Any]]) -> int:
    return sum(c["num_kept"] for c in counts if c["split"] in splits)


def _facts(step: Folder, kind: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    if kind in _LEDGERS:
        return _ledger_facts(manifest.get("rows") or {}, manifest.get("last_execution") or {})
    if kind == "scores":
        return {"scores": _main_scores(step)}
    facts = {name: manifest[name] for name in _FACTS.get(kind, ()) if name in manifest}
    return facts | ({"counts": manifest.get("counts", [])} if kind == "questions" else {})


def _ledger_facts(totals: Mapping[str, Any], execution: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: totals.get(name) or 0 for name in ("num_done", *SUMMED)}
    speed = {"tokens_per_s": execution["tokens_per_s"]} if "tokens_per_s" in execution else {}
    return facts | speed


def _main_scores(step: Folder) -> list[dict[str, Any]]:
    """For each domain of the test questions the mean over its tasks, or the score of its only
    task, of the dev questions while test was not asked; none for an evaluation, whose scores are
    of models and not of a base and a tuned one."""
    table = step.read_table()
    if "domain" not in table.column_names:
        return []
    found = table.to_pylist()
    rows = [row for row in found if row["split"] == "test"] or found
    means = {row["domain"] for row in rows if row["task"] == "mean"}
    shown = [row for row in rows if row["task"] == "mean" or row["domain"] not in means]
    return [{name: row.get(name) for name in _SHOWN_SCORES} for row in shown]


def _unfinished(step: Folder, empty: StepState, asked: int | None) -> StepState:
    if not step.file_names() and not step.folder_names():
        return StepState(empty.name, empty.folder, "missing", num_questions=asked)
    facts: dict[str, Any] = {}
    if empty.kind in _LEDGERS:
        index = current_ledger(step).index
        sums = {name: pc.sum(index.column(name)).as_py() or 0 for name in SUMMED}
        facts = _ledger_facts({"num_done": index.num_rows, **sums}, {})
    elif empty.kind == "model":
        facts = {"num_checkpoints": len(step.child("checkpoints").folder_names())}
    done = facts.get("num_done")
    return StepState(
        empty.name, empty.folder, "unfinished", num_questions=asked, num_done=done, facts=facts
    )


def current_ledger(step: Folder) -> Ledger:
    """The ledger of a step that another command may be writing.

    A part that was listed and is compacted meanwhile looks torn, and the list of what counts may be
    replaced; in both cases the folder is read again. Raises `DamagedFileError` for a finished step
    with a missing or damaged file.
    """
    for _ in range(_READS - 1):
        try:
            ledger = Ledger.read(step)
        except DamagedFileError:
            continue
        if not set(ledger.torn_files) - set(step.walk()):
            return ledger
    return Ledger.read(step)


def _ledgers(states: Iterable[StepState]) -> list[StepState]:
    return [state for state in states if state.kind in _LEDGERS]


def _what_is_left(state: StepState) -> str:
    if state.num_questions is not None and state.state != "damaged":
        return f"{state.name} ({state.num_questions - (state.num_done or 0)} questions)"
    return f"{state.name} (damaged)" if state.state == "damaged" else state.name


# --- text --------------------------------------------------------------------------------------


def format_overview(facts: Mapping[str, Any]) -> str:
    """The facts of `overview` as text."""
    rows = [["step", "state", "questions", "result"]]
    for each in facts["steps"]:
        rows.append([each["name"], each["state"], _done(each), _result(each)])
    made = f"{facts['strategy']}, {facts['rounds']} round(s), {facts['model']}"
    lines = [
        f"{facts['run']}: {made if facts['strategy'] else 'an evaluation'}",
        f"{facts['folder']}; {_holder(facts['holder'])}",
        f"\n{format_table(rows)}",
        *(f"\n{table}" for table in map(_format_scores, facts["steps"]) if table),
        *(f"\n{lines}" for lines in map(_format_decision, facts["steps"]) if lines),
        f"\ncost: {format_cost(facts['cost'])}; "
        f"{facts['num_generated_tokens']:,} tokens were generated",
        describe_reads(facts["test_reads"]),
        f"left: {', '.join(facts['left']) or 'nothing'}",
    ]
    return "\n".join(lines)


def _holder(holder: Mapping[str, str]) -> str:
    if holder["state"] == "none":
        return "no command has worked on it"
    verb = "held by" if holder["state"] == "holds" else "not held; the last command was"
    return f"{verb} {holder['who']}"


def format_cost(cost: Mapping[str, Any]) -> str:
    """The facts of `cost_of` in words."""
    money = f", {cost['money']:.2f} {cost['currency']}" if "money" in cost else ""
    return f"{format_seconds(3600 * cost['hours'])}, {cost['gpu_hours']:.2f} GPU-hours{money}"


def _done(step: Mapping[str, Any]) -> str:
    if step["num_questions"] is None:
        return ""
    return f"{step['num_done'] or 0:,} of {step['num_questions']:,}"


def _result(step: Mapping[str, Any]) -> str:
    facts = step["facts"]
    if step["problem"]:
        return str(step["problem"])
    if not facts:
        return ""
    if step["kind"] in _LEDGERS:
        return _format_ledger(step["kind"], facts)
    return _FORMATS[step["kind"]](facts) if step["kind"] in _FORMATS else ""


def _format_ledger(kind: str, facts: Mapping[str, Any]) -> str:
    num = facts["num_paths"] if kind == "paths" else facts["num_done"]
    made = f"{num:,} paths, {_share(facts['num_accepted'], num)} right, " if kind == "paths" else ""
    speed = f", {facts['tokens_per_s']:.0f} tokens/s" if "tokens_per_s" in facts else ""
    return (
        f"{made}{_share(facts['num_truncated'], num)} cut off, {facts['num_failed']:,} failed, "
        f"{facts['num_tokens']:,} tokens{speed}"
    )


def _format_examples(facts: Mapping[str, Any]) -> str:
    kept, num = facts.get("num_kept_paths", 0), facts.get("num_paths", 0)
    return (
        f"{facts.get('num_examples', 0):,} examples; kept {kept:,} of {num:,} paths "
        f"({_share(kept, num)})"
    )


def _format_model(facts: Mapping[str, Any]) -> str:
    if "num_steps" not in facts:
        return f"{facts.get('num_checkpoints', 0)} checkpoints"
    return (
        f"{facts['num_examples']:,} examples, {facts['num_steps']:,} steps, loss "
        f"{facts['first_loss']:.3f} > {facts['last_loss']:.3f}, {format_seconds(facts['seconds'])}"
    )


_FORMATS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "questions": lambda facts: f"{facts.get('num_questions', 0):,} questions",
    "examples": _format_examples,
    "model": _format_model,
    "scores": lambda facts: f"{len(facts['scores'])} scores, see below" if facts["scores"] else "",
    "decision": lambda facts: "adopted" if facts["adopted"] else "not adopted",
}


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


def _format_scores(step: Mapping[str, Any]) -> str:
    scores = step["facts"].get("scores")
    if not scores:
        return ""
    title = f"{step['name']}, on {scores[0]['split']}"
    rows = [[title, "n", "base", "tuned", "difference, strict, in percent"]]
    rows += [
        [
            f"{score['domain']}/{score['task']}",
            str(score["num_questions"]),
            f"{100 * score['base_strict']:.1f}",
            f"{100 * score['tuned_strict']:.1f}",
            f"{100 * score['strict_difference']:+.1f} "
            f"[{100 * score['strict_difference_low']:+.1f}, "
            f"{100 * score['strict_difference_high']:+.1f}]",
        ]
        for score in scores
    ]
    return format_table(rows)


def _format_decision(step: Mapping[str, Any]) -> str:
    """What was decided after a round, and why; empty for another step."""
    facts = step["facts"]
    if step["kind"] != "decision" or not facts:
        return ""
    number = str(step["name"]).partition("/")[0].removeprefix("round_")
    return "\n".join(describe_decision(f"round {number}", facts["began_with"], facts))


# --- all runs ----------------------------------------------------------------------------------


def all_runs(root: str) -> list[dict[str, Any]]:
    """The overview of each run below a folder, in the order of the names.

    A run that has not planned its steps yet, and a folder that may not be read and so may be a run,
    have only a name. Raises `InputError` when there is no run that may be read.
    """
    folder = folder_to_read("--runs", root)
    found = [_overview_of(folder.child(name)) for name in folder.folder_names()]
    runs = [run for run in found if run is not None]
    if all(run.get("state") == UNREADABLE for run in runs):
        raise InputError(f"--runs {root}: no folder in it is a run; give the storage.root of runs")
    return runs


def _overview_of(folder: Folder) -> dict[str, Any] | None:
    """The overview of a run, or why there is none; None for a folder that is no run."""
    named = {"run": folder.name, "folder": folder.uri}
    try:
        if RUN_FILE not in folder.file_names():
            return None
        return overview(StoredRun.read(folder))
    except InputError as error:
        return {**named, "state": "not planned", "problem": str(error)}
    except PermissionError as error:  # of somebody else, on a disk that several people use
        return {**named, "state": UNREADABLE, "problem": error.strerror or str(error)}


def format_runs(runs: Sequence[Mapping[str, Any]]) -> str:
    """A row for each run."""
    titles = ["run", "state", "steps", "paths", "right", "examples", "tuned - base", "cost"]
    return format_table([titles, *map(_run_row, runs)])


def _run_row(run: Mapping[str, Any]) -> list[str]:
    if "problem" in run:
        return [run["run"], run["state"], *[""] * 6]
    steps: Sequence[Mapping[str, Any]] = run["steps"]
    num_finished = sum(step["state"] == "finished" for step in steps)
    paths = [step["facts"] for step in steps if step["kind"] == "paths" and step["facts"]]
    num_paths = sum(facts["num_paths"] for facts in paths)
    examples = [s["facts"].get("num_examples", 0) for s in steps if s["kind"] == "examples"]
    return [
        str(run["run"]),
        _run_state(run),
        f"{num_finished} of {len(steps)}",
        f"{num_paths:,}",
        _share(sum(facts["num_accepted"] for facts in paths), num_paths),
        f"{sum(examples):,}",
        _last_differences(steps),
        format_cost(run["cost"]),
    ]


def _run_state(run: Mapping[str, Any]) -> str:
    if any(step["state"] == "damaged" for step in run["steps"]):
        return "damaged"
    if run["holder"]["state"] == "holds":
        return "held"
    return "unfinished" if run["left"] else "finished"


def _last_differences(steps: Sequence[Mapping[str, Any]]) -> str:
    """The strict differences of the last finished scores, in percent, by domain."""
    scored = [step["facts"]["scores"] for step in steps if step["facts"].get("scores")]
    last = scored[-1] if scored else []
    return ", ".join(f"{s['domain']} {100 * s['strict_difference']:+.1f}" for s in last)
