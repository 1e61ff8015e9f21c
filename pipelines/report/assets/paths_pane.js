"use strict";
// The lineage of one record: from the question to what was learned of it.

const PATH_TEXT_LIMIT = 20000;
const PATH_SIGNS = new Map([
  ["correct", "\u2713"],
  ["wrong", "\u2717"],
  ["no_answer", "?"],
  ["truncated", "\u2026"],
  ["error", "!"],
]);

/** A verdict as a word with a sign, so that the colour is not needed. */
function verdictBadge(verdict) {
  const known = PATH_SIGNS.has(verdict);
  const sign = known ? `${PATH_SIGNS.get(verdict)} ` : "";
  return element(
    "span",
    { class: `badge ${known ? verdict : ""}` },
    `${sign}${label(verdict.replaceAll("_", " ") || "not judged", 30)}`,
  );
}

/** A text with its line ends, what is invisible made visible, and some pieces marked. `marks` are
 * `[start, end, class]` and do not overlap. */
function shownText(text, marks = [], kind = "text") {
  const last = marks.reduce((most, mark) => Math.max(most, mark[1] + 500), PATH_TEXT_LIMIT);
  const block = element("pre", { class: kind, dir: "auto", tabindex: "-1" });
  if (text.length <= last) {
    appendMarked(block, text, marks);
    return block;
  }
  const cut = /[\ud800-\udbff]/.test(text[last - 1]) ? last - 1 : last;
  appendMarked(block, text.slice(0, cut), marks);
  const more = element("button", { type: "button" }, `Show all ${count(text.length)} characters`);
  more.addEventListener("click", () => {
    block.replaceChildren();
    appendMarked(block, text, marks);
    more.remove();
    block.focus();
  });
  return [block, more];
}

function appendMarked(root, text, marks) {
  let at = 0;
  for (const [start, end, kind] of marks) {
    appendVisible(root, text.slice(at, start));
    const mark = element("mark", { class: kind });
    appendVisible(mark, text.slice(start, end));
    root.append(mark);
    at = end;
  }
  appendVisible(root, text.slice(at));
}

function appendVisible(root, text) {
  let at = 0;
  for (const found of text.matchAll(HIDDEN)) {
    root.append(text.slice(at, found.index));
    root.append(element("span", { class: "control" }, visible(found[0])));
    at = found.index + found[0].length;
  }
  root.append(text.slice(at));
}

/** Where the searched words are, apart from the place of the answer. */
function textMarks(text, words, place = null) {
  const marks = place === null ? [] : [[...place, "answer"]];
  const lower = text.toLowerCase();
  if (lower.length !== text.length) return marks;
  for (const word of words) {
    for (let at = lower.indexOf(word); at >= 0 && marks.length < 500; ) {
      const end = at + word.length;
      if (!marks.some((mark) => at < mark[1] && mark[0] < end)) marks.push([at, end, "found"]);
      at = lower.indexOf(word, end);
    }
  }
  return marks.sort((one, other) => one[0] - other[0]);
}

/** Draws records into the pane. `words` are those of the search. */
class PathPane {
  constructor(root, index) {
    this.root = root;
    this.index = index;
  }

  draw(number, { question, content }, words) {
    const steps = element("ol", { class: "lineage" });
    this.words = words;
    this.steps = steps;
    this.step("Question", this.question(question, content));
    if (content.answers) this.drawAnswers(number, content.answers);
    else this.drawPath(number, question, content);
    this.root.replaceChildren(
      element("h3", { class: "id" }, visible(this.index.raw.ids[number])),
      steps,
    );
    this.root.scrollTop = 0;
  }

  step(title, ...content) {
    this.steps.append(element("li", {}, element("h4", {}, title), ...content.flat()));
  }

  text(text, place = null, kind = "text") {
    return shownText(text, textMarks(text, this.words, place), kind);
  }

  question(question, content) {
    const answer = question.answer || "unknown";
    const type = label(question.answer_type, 20);
    return [
      this.text(question.text),
      content.shown
        ? element("p", { class: "fact" }, "This path was shown the options in another order:")
        : null,
      content.shown ? this.text(content.shown) : null,
      element("p", { class: "fact" }, `Right answer (${type}): `, element("b", {}, label(answer))),
    ];
  }

  drawPath(number, question, content) {
    const guideline = this.index.value("guideline", number);
    if (guideline) {
      const text = this.guidelineText(this.index.value("run", number), guideline);
      const name = element("p", { class: "fact" }, element("b", {}, label(guideline)));
      this.step("Guideline", name, text ? this.text(text) : null);
    }
    for (const stage of content.stages) {
      const title = stage.title.replaceAll("_", " ");
      const isLast = stage.title === "reasoning";
      if (isLast && content.thinking) this.step("Thinking", this.text(content.thinking));
      const place = isLast ? content.place : null;
      this.step(
        isLast ? "Path" : `${title[0].toUpperCase()}${title.slice(1)}`,
        this.text(stage.text, place),
        element("p", { class: "fact" }, endOf(stage)),
      );
    }
    this.step("Verdict", ...this.verdict(number, question, content));
    for (const example of content.examples) this.drawExample(example);
  }

  guidelineText(run, guideline) {
    const { guidelines } = this.index.raw;
    const texts = Object.hasOwn(guidelines, run) ? guidelines[run] : {};
    return Object.hasOwn(texts, guideline) ? texts[guideline] : "";
  }

  verdict(number, question, content) {
    const value = (name) => this.index.value(name, number);
    const facts = [
      element("p", {}, verdictBadge(value("verdict")), " ", outcomeText(value("outcome"))),
      element("p", { class: "fact" }, readText(content.predicted, value("read"), content)),
    ];
    if (question.grader)
      facts.push(
        element(
          "p",
          { class: "fact" },
          `Version ${label(question.grader, 20)} of the grader judged it; what is marked is what `,
          "today's version reads.",
        ),
      );
    if (content.is_hinted)
      facts.push(element("p", { class: "fact" }, "It was shown the right answer in some stages."));
    if (content.judged) {
      const found = content.judged === "yes" ? "sound" : "unsound";
      facts.push(element("p", { class: "fact" }, `The model itself found it ${found}.`));
    }
    if (content.error) facts.push(this.text(content.error, null, "text error"));
    return facts;
  }

  drawExample(example) {
    const added = example.answer_added ? " Its end was written by this program." : "";
    this.step(
      `Example as trained (${label(example.form, 30)})`,
      element(
        "p",
        { class: "fact" },
        `Prompt: ${plural(example.num_prompt_tokens, "token")}, not learned`,
      ),
      this.text(example.not_learned, null, "text prompt"),
      element(
        "p",
        { class: "fact" },
        `Target: ${plural(example.num_learned_tokens, "token")}, learned.${added}`,
      ),
      this.text(example.learned, null, "text learned"),
    );
  }

  drawAnswers(number, answers) {
    for (const answer of answers) {
      this.step(
        `Answer of ${label(answer.step.replace("/predictions", ""), 40)}`,
        element("p", {}, verdictBadge(answer.verdict ?? "")),
        answer.thinking ? this.text(answer.thinking, null, "text prompt") : null,
        this.text(answer.text, answer.place),
        element("p", { class: "fact" }, `${readText(answer.predicted, answer.read_as, answer)} `),
        element("p", { class: "fact" }, endOf(answer)),
        answer.error ? this.text(answer.error, null, "text error") : null,
      );
    }
    const change = PATH_CHANGES.get(this.index.value("outcome", number));
    if (change) this.step("Change", element("p", {}, change));
  }
}

function endOf({ tokens, ended }) {
  const length = tokens === null || tokens === undefined ? "" : `${plural(tokens, "token")}, `;
  if (!ended) return length.replace(", ", "");
  return length + (ended === "stop" ? "ended by itself" : `cut off (${label(ended, 20)})`);
}

const PATH_READINGS = new Map([
  ["boxed", "read from a box"],
  ["phrase", "read from a phrase"],
  ["last", "the last value of the text"],
]);

function readText(predicted, read, { place }) {
  if (predicted === null || predicted === undefined) return "No answer was read.";
  const where = place ? ", marked above" : "";
  return `Answer: ${label(predicted, 200)} (${PATH_READINGS.get(read) ?? label(read || "read", 20)}${where}).`;
}

const PATH_OUTCOMES = new Map([
  ["", "Not selected from so far."],
  ["kept", "Kept as an example."],
]);

const PATH_CHANGES = new Map([
  ["gained", "Gained: the first model was wrong, and the last one is right."],
  ["lost", "Lost: the first model was right, and the last one is wrong."],
  ["right", "The first and the last model are right."],
  ["wrong", "The first and the last model are wrong."],
]);

function outcomeText(outcome) {
  return PATH_OUTCOMES.get(outcome) ?? `Dropped: ${label(outcome.replaceAll("_", " "), 60)}.`;
}
