"use strict";
// The first screen: how far the runs are, and what the declared comparisons show.

const WORDS = { shown: "shown", worse: "worse", "not shown": "not shown" };

function drawVerdict(root, report) {
  root.append(...report.runs.map(runCard));
  if (report.verdict.length === 0) {
    root.append(nothing("No two models have answered the same questions so far."));
    return;
  }
  const overSeeds = report.verdict.filter((claim) => claim.num_seeds > 1);
  const ofCheckpoints = report.verdict.filter((claim) => claim.num_seeds === 1);
  if (overSeeds.length === 0) {
    root.append(...claimList(report, ofCheckpoints));
    return;
  }
  root.append(...claimList(report, overSeeds));
  if (ofCheckpoints.length > 0)
    root.append(
      element(
        "details",
        {},
        element("summary", {}, `${plural(ofCheckpoints.length, "comparison")} of single checkpoints`),
        ...claimList(report, ofCheckpoints),
      ),
    );
}

function claimList(report, claims) {
  return [
    element("ul", { class: "claims" }, claims.map((claim) => claimItem(report, claim))),
    element(
      "p",
      { class: "note" },
      `Questions of ${report.split}. Intervals are of 95 %. A difference is called shown or worse if ` +
        `its p value, corrected for the ${plural(claims.length, "comparison")} above (Holm), is below ` +
        "5 % and its interval does not contain 0.",
    ),
  ];
}

function runCard(run) {
  const cost = run.cost;
  const facts = [
    run.model,
    run.strategy,
    run.rounds ? plural(run.rounds, "round") : null,
    `${count(run.num_generated_tokens)} tokens generated`,
    duration(3600 * cost.hours),
    cost.gpu_hours ? `${cost.gpu_hours.toFixed(2)} GPU-hours` : null,
    cost.money === undefined ? null : `${cost.money.toFixed(2)} ${label(cost.currency, 8)}`,
  ].filter(Boolean);
  const card = element(
    "div",
    { class: "run" },
    element("strong", {}, label(run.name)),
    " ",
    element("span", { class: "facts" }, facts.map((each) => label(each, 60)).join(" · ")),
  );
  if (run.left.length > 0) {
    const held = run.is_held ? "a command works on it" : "no command works on it now";
    card.append(
      element(
        "p",
        { class: "sofar" },
        element("span", { class: "mark open" }, "so far"),
        ` Not finished (${held}). Left: ${label(run.left.join(", "), 300)}.`,
      ),
    );
  }
  for (const note of run.notes) card.append(element("p", { class: "note" }, label(note, 400)));
  return card;
}

function interval(each) {
  return `${signed(100 * each.value)} [${signed(100 * each.low)}, ${signed(100 * each.high)}]`;
}

function claimItem(report, claim) {
  const scope =
    claim.num_seeds > 1 ? `over ${claim.num_seeds} seeds` : "for this checkpoint only";
  const tasks = claim.num_tasks > 1 ? `, mean over ${claim.num_tasks} tasks` : "";
  const word = WORDS[claim.verdict];
  const item = element(
    "li",
    { class: `claim ${claim.verdict.replace(" ", "-")}` },
    element("span", { class: "mark" }, word),
    element(
      "div",
      {},
      element(
        "p",
        { class: "sentence" },
        `${comparisonName(report, claim.name)}, ${groupName(claim.group).toLowerCase()}${tasks}, ` +
          `${readingName(claim.reading)}: `,
        element("strong", {}, `${interval(claim)} points`),
        `, ${plural(claim.num_questions, "question")}: ${word}, ${scope}.`,
      ),
      element("p", { class: "note" }, claimNotes(claim).join(" ")),
    ),
  );
  return item;
}

function claimNotes(claim) {
  const notes = claim.others.map(
    (each) => {
      const name = readingName(each.reading);
      return `${name[0].toUpperCase()}${name.slice(1)}: ${interval(each)}.`;
    },
  );
  const unsure = claim.others.filter((each) => each.low <= 0 && each.high >= 0);
  if (claim.verdict === "shown" && unsure.length > 0)
    notes.push(
      `The ${unsure.map((each) => label(each.reading)).join(" and ")} reading does not show it, so ` +
        "the gain may be one of form.",
    );
  if (claim.verdict === "not shown" && claim.detectable !== null)
    notes.push(
      `A true difference of ${percent(claim.detectable)} points would have been found in four of ` +
        "five cases.",
    );
  if (claim.kept) notes.push(keptNote(claim.kept));
  return notes;
}

function keptNote(kept) {
  const margin = `a loss of at most ${percent(kept.margin)} points (a tenth of the base's share)`;
  if (kept.holds === null)
    return (
      `Whether it keeps what the base can do, within ${margin}, cannot be said: the base is too ` +
      `weak, or the questions are too few (power ${percent(kept.power, 0)} %).`
    );
  return kept.holds
    ? `It keeps what the base can do, within ${margin}.`
    : `It is not shown to keep what the base can do, within ${margin}.`;
}
