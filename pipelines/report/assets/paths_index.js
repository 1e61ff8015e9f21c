"use strict";
// The index of the records: which of them the filters leave, and the address that says so.

/** What the index says of each record, by its number. */
class PathIndex {
  constructor(raw) {
    this.raw = raw;
    this.size = raw.ids.length;
    this.fields = new Map(raw.fields.map((each) => [each.name, each]));
  }

  value(name, number) {
    const field = this.fields.get(name);
    return field.values[field.codes[number]];
  }

  questionOf(number) {
    return this.raw.questions[this.raw.question[number]];
  }

  /** The number of the record with an id, or -1; of several runs the first one, unless a run is
   * given. */
  find(id, run) {
    const isIt = (each, n) => each === id && (run === null || this.value("run", n) === run);
    return this.raw.ids.findIndex(isIt);
  }

  /** The run of a record where that has to be said, since there are several. */
  runOf(number) {
    return this.fields.get("run").values.length > 1 ? this.value("run", number) : null;
  }

  /** The chunk of a record, and its place there. */
  chunkOf(number) {
    const { starts } = this.raw;
    let [low, high] = [0, starts.length - 1];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (starts[middle] <= number) low = middle;
      else high = middle;
    }
    return [low, number - starts[low]];
  }

  /** Whether each record passes the filters, as bytes; `hits` are those of a search, or null. The
   * filter with the name `except` is ignored. */
  passing(filters, hits, except = null) {
    const passes = hits === null ? new Uint8Array(this.size).fill(1) : Uint8Array.from(hits);
    for (const [name, value] of filters) {
      if (name === except) continue;
      const field = this.columnOf(name);
      if (field === null) continue;
      const code = field.values.indexOf(value);
      for (let n = 0; n < this.size; n += 1) if (field.codes[n] !== code) passes[n] = 0;
    }
    return passes;
  }

  columnOf(name) {
    if (name === "question") return { values: this.raw.questions, codes: this.raw.question };
    return this.fields.get(name) ?? null;
  }

  /** The numbers of the records that pass, in order. */
  matching(filters, hits) {
    const passes = this.passing(filters, hits);
    const found = [];
    for (let n = 0; n < this.size; n += 1) if (passes[n]) found.push(n);
    return found;
  }

  /** How many records have each value of a field, among those that the other filters leave. */
  counts(name, filters, hits) {
    const field = this.fields.get(name);
    const passes = this.passing(filters, hits, name);
    const counts = new Uint32Array(field.values.length);
    for (let n = 0; n < this.size; n += 1) counts[field.codes[n]] += passes[n];
    return counts;
  }
}

/** What an address asks for: `#path=ID`, `#question=ID`, `#filter=guideline:ID&verdict:wrong`, or
 * several of them; `#path=ID&run=NAME` where runs have paths with the same id. Null for an address
 * that is not ours. */
function readPathAddress(hash) {
  const filters = new Map();
  let [path, run] = [null, null];
  let isOurs = false;
  for (const part of hash.replace(/^#/, "").split("&")) {
    const found = /^(path|question|run)=(.*)$/s.exec(part) ?? /^(?:filter=)?(\w+):(.*)$/s.exec(part);
    const value = found && decodedPart(found[2]);
    if (value === null) continue;
    isOurs = true;
    const isRun = found[1] === "run" && part.startsWith("run=");
    if (found[1] === "path") path = value;
    else if (isRun) run = value;
    else filters.set(found[1], value);
  }
  return isOurs ? { filters, path, run } : null;
}

function decodedPart(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}

/** The inverse; empty if nothing is asked for. */
function pathAddress(filters, path, run = null) {
  const parts = path === null ? [] : [`path=${encodedPart(path)}`];
  if (run !== null) parts.push(`run=${encodedPart(run)}`);
  if (filters.has("question")) parts.push(`question=${encodedPart(filters.get("question"))}`);
  const others = [...filters].filter(([name]) => name !== "question");
  const listed = others.map(([name, value]) => `${name}:${encodedPart(value)}`);
  if (listed.length) parts.push(`filter=${listed.join("&")}`);
  return parts.length ? `#${parts.join("&")}` : "";
}

function encodedPart(text) {
  return encodeURIComponent(text.toWellFormed()).replaceAll("%2F", "/");
}

// --- texts ---------------------------------------------------------------------------------------

/** Opens chunks, and searches all of them. The last few stay open. */
class PathTexts {
  constructor(index, openChunk) {
    this.index = index;
    this.openChunk = openChunk;
    this.open = new Map();
    this.searched = new Array(index.raw.starts.length - 1).fill(null);
  }

  async chunk(number) {
    const known = this.open.get(number);
    if (known !== undefined) return known;
    const opened = this.openChunk(number);
    this.open.set(number, opened);
    if (this.open.size > 8) this.open.delete(this.open.keys().next().value);
    return opened;
  }

  /** The question and the content of a record. */
  async record(number) {
    const [chunk, place] = this.index.chunkOf(number);
    const { questions, records } = await this.chunk(chunk);
    const [question, content] = records[place];
    return { question: questions[question], content };
  }

  /** Which records contain all words, as bytes; null if `isWanted()` has become false. */
  async search(words, isWanted, onProgress) {
    const hits = new Uint8Array(this.index.size);
    const number = this.searched.length;
    for (let first = 0; first < number; first += 4) {
      const several = [...Array(Math.min(4, number - first)).keys()].map((n) => first + n);
      await Promise.all(several.map((chunk) => this.searchChunk(chunk, words, hits)));
      if (!isWanted()) return null;
      onProgress(Math.min(first + 4, number) / number);
    }
    return hits;
  }

  async searchChunk(chunk, words, hits) {
    if (this.searched[chunk] === null) {
      const { questions, records } = await (this.open.get(chunk) ?? this.openChunk(chunk));
      const asked = questions.map((each) => each.text.toLowerCase());
      this.searched[chunk] = records.map(([question, content]) => [
        asked[question],
        searchedText(content),
      ]);
    }
    const start = this.index.raw.starts[chunk];
    this.searched[chunk].forEach(([asked, own], place) => {
      const id = this.index.raw.ids[start + place];
      const has = (word) => own.includes(word) || asked.includes(word) || id.includes(word);
      if (words.every(has)) hits[start + place] = 1;
    });
  }
}

/** All that a record says, without the question. */
function searchedText(content) {
  const answers = content.answers ?? [content];
  const texts = (content.stages ?? []).map((stage) => stage.text);
  for (const each of answers)
    texts.push(each.text, each.thinking, each.predicted, each.error);
  return texts.filter(Boolean).join("\n").toLowerCase();
}

/** The words of a search; what stands in quotation marks is one. */
function searchWords(text) {
  const found = text.toLowerCase().matchAll(/"([^"]+)"|(\S+)/g);
  return [...found].map((each) => each[1] ?? each[2]).filter((word) => word !== '"');
}
