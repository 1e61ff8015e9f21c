"use strict";
// The blinded sheet: a person judges the reasoning of paths, and saves what was found as a file.

const JUDGE_ANSWERS = [
  ["yes", "valid", "y"],
  ["no", "not valid", "n"],
  ["unsure", "unsure", "u"],
];

function drawJudgeSheet(root, sheet) {
  return new JudgeSheet(root, sheet);
}

class JudgeSheet {
  constructor(root, sheet) {
    this.sheet = sheet;
    this.found = sheet.items.map(() => ({ valid: "", note: "" }));
    this.isSaved = true;
    document.title = "Paths to judge";
    this.status = element("p", { class: "status", role: "status" });
    this.judge = element("input", { type: "text", maxlength: 100, autocomplete: "off" });
    this.save = element("button", { type: "button" }, "Save the judgements");
    this.save.addEventListener("click", () => this.saveAll());
    this.cards = sheet.items.map((item, place) => this.card(item, place));
    root.classList.add("paths", "judge");
    root.replaceChildren(
      element("h2", {}, "Paths to judge"),
      element(
        "p",
        {},
        "Is the reasoning of each path valid? It is valid if every step follows from the question ",
        "and the steps before it. Whether the answer is right does not matter here.",
      ),
      element(
        "p",
        { class: "fact" },
        "Keys on a path: y valid, n not valid, u unsure, j the next path, k the one before.",
      ),
      ...this.cards,
      element(
        "div",
        { class: "bar sticky" },
        this.status,
        element("label", {}, "Your name (optional): ", this.judge),
        this.save,
      ),
    );
    root.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("beforeunload", (event) => this.isSaved || event.preventDefault());
    this.count();
  }

  card(item, place) {
    const name = `valid-${place}`;
    const choices = JUDGE_ANSWERS.map(([value, text]) => {
      const radio = element("input", { type: "radio", name, value });
      radio.addEventListener("change", () => this.set(place, { valid: value }));
      return element("label", { class: "choice" }, radio, ` ${text}`);
    });
    const note = element("textarea", { rows: 1, maxlength: 5000, placeholder: "note" });
    note.setAttribute("aria-label", `Note on path ${place + 1}`);
    note.addEventListener("input", () => this.set(place, { note: note.value }));
    return element(
      "section",
      { class: "card", tabindex: "0", "data-place": place, "aria-label": `Path ${place + 1}` },
      element("h3", {}, `${place + 1} of ${this.sheet.items.length}`),
      element("h4", {}, "Question"),
      ...[shownText(item.question)].flat(),
      element("h4", {}, "Path"),
      ...[shownText(item.reasoning)].flat(),
      element("fieldset", {}, element("legend", {}, "The reasoning is"), ...choices, note),
    );
  }

  set(place, change) {
    Object.assign(this.found[place], change);
    this.isSaved = false;
    this.count();
  }

  count() {
    const judged = this.found.filter((each) => each.valid).length;
    this.status.textContent = `${judged} of ${this.found.length} judged`;
    this.save.disabled = judged === 0;
    this.cards.forEach((card, n) => card.classList.toggle("judged", Boolean(this.found[n].valid)));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("textarea, input[type=text]")) return;
    const card = event.target.closest("[data-place]");
    const place = card === null ? -1 : Number(card.dataset.place);
    const answer = JUDGE_ANSWERS.find((each) => each[2] === event.key);
    if (event.key === "j") this.focus(place + 1);
    else if (event.key === "k") this.focus(place - 1);
    else if (answer && card) card.querySelector(`input[value=${answer[0]}]`).click();
    else return;
    event.preventDefault();
  }

  focus(place) {
    const card = this.cards[Math.min(Math.max(place, 0), this.cards.length - 1)];
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "start" });
  }

  saveAll() {
    const judgements = this.sheet.items
      .map(({ id, fingerprint }, n) => ({ id, fingerprint, ...this.found[n] }))
      .filter((each) => each.valid);
    const saved = {
      format: "regenesis judgements",
      version: 1,
      sheet: this.sheet.sheet,
      judge: this.judge.value.trim(),
      judgements,
    };
    saveFile(`judgements-${this.sheet.sheet}.json`, "application/json", JSON.stringify(saved));
    this.isSaved = true;
  }
}
