// One episode: what the policy wrote, what it was shown, and what each cost and brought.

const KINDS = new Set(["think", "search", "refine", "answer"]);
const MODES = [["tags", "Blocks", "What each part is"], ["prob", "Log-prob", "How likely each token was when it was sampled"],
  ["mask", "Trained", "Which tokens the loss sees"]];
const looking = { mode: "tags" };

async function showEpisode(view, number) {
  const place = listing.rows.indexOf(number);
  const step = by => { const next = listing.rows[place + by]; if (place >= 0 && next !== undefined) { listing.at = place + by; go(`#/episode/${next}`); } };
  const modes = modeButtons(view);
  const where = place < 0 ? "" : `${(place + 1).toLocaleString("en")} of ${listing.rows.length.toLocaleString("en")}`;
  view.replaceChildren(
    el("div.tools", {},
      el("a.button", { href: "#/episodes", title: "Back to the table (Esc)" }, "← Episodes"),
      el("button", { type: "button", onclick: () => step(-1), title: "Previous (p)", "aria-label": "Previous episode" }, "‹"),
      el("button", { type: "button", onclick: () => step(1), title: "Next (n)", "aria-label": "Next episode" }, "›"),
      el("span.count", {}, where), modes.node),
    el("article.episodes", {}, await episodeView(number)), siblings(number));
  setMode(view, looking.mode);
  return { n: () => step(1), p: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1), Escape: () => go("#/episodes"), ...modes.keys };
}

function modeButtons(view) {
  const node = el("span.modes", { role: "group", "aria-label": "What is coloured" }, MODES.map(([mode, title, why], i) =>
    el("button", { type: "button", "data-mode": mode, title: `${why} (${i + 1})`, onclick: () => setMode(view, mode) }, title)));
  const keys = Object.fromEntries(MODES.map(([mode], i) => [String(i + 1), () => setMode(view, mode)]));
  return { node, keys };
}

function setMode(view, mode) {
  looking.mode = mode;
  view.dataset.mode = mode;
  for (const button of view.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", button.dataset.mode === mode);
}

async function episodeView(number) {
  const { text, golds, supporting, id } = data.question(number);
  const [reason, gains, segments] = await data.episode(number);
  const answers = answerPattern(golds);
  const outcome = data.value("outcome", number);
  const stage = data.value("stage", number), learns = outcome === "aborted" ? "never trained" : stage === "train" ? "trained" : "policy";
  const usual = 1000 * (data.runs[data.columns.run[number]].stages[stage].summary.latency_s?.p95 ?? 0);
  const slowest = Math.max(1e-3, usual, ...segments.flatMap(segment => segment.c ?? []).map(call => call[2]));
  const seen = new Set();
  const parts = segments.map(segment => {
    if (segment.k === "p") return el("details.segment.prompt", {}, el("summary", {}, "Prompt", el("span.muted", {}, ` ${segment.n} tokens`)), el("pre", {}, segment.t));
    if (segment.k === "g") return generated(segment, gains?.[segment.u], learns);
    return observation(segment, supporting, answers, slowest, seen);
  });
  return el("section.episode", {},
    el("header.question", {},
      el("h1", {}, text),
      el("div.golds", {}, el("span.muted", {}, "gold"), golds.map(gold => el("b.gold", {}, gold))),
      el("div.golds", {}, el("span.muted", {}, "answer"), answerChip(number)),
      el("div.facts", {}, facts(number, id).map(([name, value, tone]) => el(`span.fact${tone ? `.${tone}` : ""}`, {}, el("span.muted", {}, name), value))),
      reason ? el("p.reason", {}, reason) : null),
    el("div.segments", {}, parts));
}

function answerChip(number) {
  const answer = data.value("answer", number);
  return el(`b.given.${data.right(number) ? "good" : "bad"}`, {}, answer === null ? "none" : answer === "" ? "empty" : answer);
}

function facts(number, id) {
  const outcome = data.value("outcome", number);
  const credit = data.value("credit", number), stale = data.value("staleness", number);
  const found = [["", `${stageTitle(data.value("stage", number))} · step ${data.value("step", number)} · sample ${data.value("sample", number)}`],
    ["", id], ["", outcome, outcome === "finished" ? "" : "bad"], ["", data.value("verdict", number)],
    ["reward", number_("reward", data.value("reward", number))]];
  if (data.runs.length > 1) found.unshift(["", data.run(number)]);
  if (credit !== null) found.push(["credit", `${credit > 0 ? "+" : ""}${credit.toFixed(2)}`, credit > 0 ? "good" : credit < 0 ? "bad" : ""]);
  for (const name of Object.keys(data.parts)) { const value = data.value(name, number); if (value !== null) found.push([name, number_(name, value)]); }
  if (stale !== null) found.push(["staleness", String(stale)]);
  return found;
}

// A turn of the policy. Each token is an element that knows its log-probability; each block lends its colour.
function generated(segment, gain, learns) {
  const text = el("pre.text");
  const starts = new Set([0, segment.t.length]);
  let place = 0;
  const tokens = (segment.p ?? []).map((length, i) => { const token = [place, place += length, segment.l[i]]; starts.add(place); return token; });
  const inside = [];
  for (const [kind, begin, end] of segment.x) {
    starts.add(begin); starts.add(end);
    inside.push([KINDS.has(kind) ? kind : "other", begin, end]);
    const open = segment.t.indexOf(">", begin) + 1, close = segment.t.lastIndexOf("</", end);
    if (open > begin && open <= end) { starts.add(open); inside.push(["tag", begin, open]); }
    if (close > open && segment.t.endsWith(">", end)) { starts.add(close); inside.push(["tag", close, end]); }
  }
  const cuts = [...starts].sort((a, b) => a - b);
  let at = 0;
  for (let i = 0; i + 1 < cuts.length; i++) {
    while (at < tokens.length && tokens[at][1] <= cuts[i]) at++;
    const classes = inside.filter(([, begin, end]) => begin <= cuts[i] && cuts[i + 1] <= end).map(([kind]) => `k-${kind}`);
    const piece = el(["span", ...new Set(classes)].join("."), {}, segment.t.slice(cuts[i], cuts[i + 1]));
    const token = tokens[at];
    if (token) shade(piece, token[2]);
    text.append(piece);
  }
  const mean = segment.l.length ? segment.l.reduce((sum, value) => sum + value, 0) / segment.l.length : null;
  const versions = segment.v.length ? `weights ${segment.v.join("–")}` : "";
  const notes = [`${segment.n} tokens`, versions, mean === null ? "" : `mean log-prob ${nats(mean)}`,
    segment.f === "stop" || segment.f === "end_of_turn" ? "" : `ended by ${segment.f}`];
  if (!segment.p && segment.l.length) notes.push("tokens cannot be placed: no tokenizer that spells this text");
  return el(`div.segment.policy${learns === "never trained" ? ".untrained" : ""}`, {},
    el("div.side", {}, el("b", {}, `Turn ${segment.u + 1}`), el("span.trained", { title: learns === "trained" ? "The loss sees these tokens, unless the step dropped the whole group" : "Tokens that the policy chose" }, learns),
      gain ? el("span.gain", { title: "What this turn brought by itself" }, `gain ${number(gain, 2)}`) : null),
    el("div.main", {}, text, el("p.notes", {}, notes.filter(Boolean).join(" · "))));
}

const nats = hundredths => hundredths < 0.5 ? "0.00" : `−${(hundredths / 100).toFixed(2)}`;

// Surprise from 0 (certain) to 1 (five nats or more); touching a token says its number.
function shade(piece, hundredths) {
  piece.classList.add("tok");
  piece.style.setProperty("--s", Math.min(1, hundredths / 500).toFixed(3));
  const told = `log-prob ${nats(hundredths)} · probability ${(100 * Math.exp(-hundredths / 100)).toFixed(hundredths > 230 ? 2 : 0)} %`;
  piece.addEventListener("pointerenter", () => hint(told));
  piece.addEventListener("pointerleave", () => hint(""));
}

function observation(segment, supporting, answers, slowest, seen) {
  const calls = (segment.c ?? []).map(call => searchLine(call, slowest));
  const results = (segment.c ?? []).flatMap(call => call[5]);
  const body = segment.o ? passages(segment, results, supporting, answers, seen) : [el("pre.text", {}, marked(segment.t.trim(), answers))];
  const listed = segment.o || !results.length ? null : el("ol.results", {}, results.map(result => el("li", {}, badge(result, supporting, seen), result[2] || result[0])));
  return el("div.segment.shown", {},
    el("div.side", {}, el("b", {}, segment.c?.length ? "Search" : "Told"), el("span.trained", {}, "masked")),
    el("div.main", {}, calls, listed, body, el("p.notes", {}, `${segment.n} tokens`)));
}

function searchLine([tool, request, ms, cached, failure, results], slowest) {
  const bar = el("i.tone0");
  bar.style.width = `${Math.max(1.5, 100 * ms / slowest)}%`;
  return el("div.call", {}, el("code.query", { title: tool }, request),
    el("span.wait", { title: "Latency of this search; a full bar is the slowest of the episode, or the stage's 95th percentile" }, el("span.track", {}, bar), el("span.num", {}, milliseconds(ms))),
    cached ? el("span.fact", {}, "cached") : null,
    failure ? el("span.fact.bad", {}, failure) : results.length ? null : el("span.fact.bad", {}, "nothing found"));
}

// segment.o: where each passage begins, and where the last one ends; what stands around them is the protocol's.
function passages(segment, results, supporting, answers, seen) {
  const frame = text => text.trim() ? el("pre.frame", {}, text.trim()) : null;
  const cards = results.map((result, i) => el(`div.passage${supporting.includes(result[0]) ? ".evidence" : ""}`, {},
    el("div.source", {}, badge(result, supporting, seen), el("code", { title: "Id" }, result[0]), el("span.num", { title: "Score" }, number(result[1], 2))),
    el("pre.text", {}, marked(segment.t.slice(segment.o[i], segment.o[i + 1]).trim(), answers))));
  return [frame(segment.t.slice(0, segment.o[0])), ...cards, frame(segment.t.slice(segment.o.at(-1)))];
}

function badge([id], supporting, seen) {
  if (!supporting.includes(id)) return null;
  const again = seen.has(id);
  seen.add(id);
  return el(`span.badge${again ? ".again" : ""}`, { title: again ? "Evidence that was shown before" : "Evidence, shown for the first time" }, again ? "gold, again" : "gold");
}

// Accepted answers as whole words, whatever stands between them; yes and no mark nothing.
function answerPattern(golds) {
  const wanted = golds.map(gold => gold.toLowerCase().match(/[\p{L}\p{N}\p{M}]+/gu) ?? [])
    .map(words => words.filter((word, i) => words.length === 1 || i || !["a", "an", "the"].includes(word)))
    .filter(words => words.length && !["yes", "no", "noanswer", "a", "an", "the"].includes(words.join(" ")))
    .map(words => words.join("[^\\p{L}\\p{N}]{1,6}")).sort((a, b) => b.length - a.length);
  return wanted.length ? new RegExp(`(?<![\\p{L}\\p{N}])(?:${wanted.join("|")})(?![\\p{L}\\p{N}])`, "giu") : null;
}

function marked(text, pattern) {
  if (!pattern) return [text];
  const pieces = [];
  let place = 0;
  for (const match of text.matchAll(pattern)) {
    pieces.push(text.slice(place, match.index), el("mark", {}, match[0]));
    place = match.index + match[0].length;
  }
  pieces.push(text.slice(place));
  return pieces;
}

// The other samples of the group, or the same question elsewhere.
function siblings(number) {
  const mine = data.columns.question[number], others = [];
  for (let other = 0; other < data.count; other++) if (data.columns.question[other] === mine) others.push(other);
  if (others.length < 2) return null;
  return el("nav.siblings", { "aria-label": "The same question" }, el("h2", {}, `The same question, ${others.length} times`),
    el("div", {}, others.slice(0, 400).map(other => el(`a.sibling${other === number ? ".here" : ""}`, { href: `#/episode/${other}` },
      verdictMark(other), el("span", {}, `${data.runs.length > 1 ? `${data.run(other)} · ` : ""}${stageTitle(data.value("stage", other))} ${data.value("step", other) || ""}`),
      el("b", {}, number_("reward", data.value("reward", other))), el("span.muted", {}, data.value("answer", other) ?? "no answer")))));
}
