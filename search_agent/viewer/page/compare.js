// Two sets of episodes on the same questions: counts of who was right, and both episodes beside each other.

const comparing = { left: null, right: null, show: "all", at: 0 };
const QUADRANTS = [["all", "all", () => true], ["won", "only B right", (a, b) => !a && b], ["lost", "only A right", (a, b) => a && !b],
  ["both", "both right", (a, b) => a && b], ["neither", "neither", (a, b) => !a && !b]];

// Every set of episodes of one run, stage and step.
function allSets() {
  const found = new Map();
  for (let n = 0; n < data.count; n++) {
    const key = `${data.columns.run[n]}/${data.columns.stage[n]}/${data.columns.step[n]}`;
    if (!found.has(key)) found.set(key, { key, name: setName(n), stage: data.value("stage", n), run: data.columns.run[n], episodes: [] });
    found.get(key).episodes.push(n);
  }
  return [...found.values()];
}

const setName = n => `${data.runs.length > 1 ? `${data.run(n)} · ` : ""}${stageTitle(data.value("stage", n))}${data.value("step", n) ? ` ${data.value("step", n)}` : ""}`;

function startingPair(sets) {
  const several = data.runs.length > 1;
  const byStage = (run, words) => sets.findLast(set => set.run === run && words.every(word => set.stage.includes(word)));
  const pairs = several
    ? [["after-greedy"], ["greedy"], [""]].map(words => [byStage(0, words), byStage(1, words)])
    : [[byStage(0, ["before-greedy"]), byStage(0, ["after-greedy"])], [sets[0], sets.at(-1)]];
  return pairs.find(([a, b]) => a && b && a !== b) ?? [sets[0], sets.at(-1)];
}

// Matched by question, text included, and by sample where both have it.
function matched(left, right) {
  const key = n => `${data.question(n).id}\n${data.question(n).text}\n${data.columns.sample[n]}`;
  const there = new Map(right.episodes.map(n => [key(n), n]));
  return left.episodes.filter(n => there.has(key(n))).map(n => [n, there.get(key(n))]);
}

async function showCompare(view) {
  const sets = allSets();
  if (sets.length < 2) { view.replaceChildren(el("p.lead", {}, "There is one set of episodes: name a second run to compare it with.")); return {}; }
  const [first, second] = startingPair(sets);
  comparing.left = sets.find(set => set.key === comparing.left?.key) ?? first;
  comparing.right = sets.find(set => set.key === comparing.right?.key) ?? second;
  const pairs = matched(comparing.left, comparing.right);
  const quadrant = QUADRANTS.find(([name]) => name === comparing.show);
  const rows = pairs.filter(([a, b]) => quadrant[2](data.right(a), data.right(b)));
  comparing.at = Math.max(0, Math.min(comparing.at, rows.length - 1));
  const again = () => route();
  const pick = (side, title) => el("label.pick", {}, el("b", {}, title), el("select", { onchange: event => { comparing[side] = sets.find(set => set.key === event.target.value); comparing.at = 0; again(); } },
    sets.map(set => el("option", { value: set.key, selected: set.key === comparing[side].key }, set.name))));
  const count = holds => pairs.filter(([a, b]) => holds(data.right(a), data.right(b))).length;
  const chips = el("div.chips", {}, QUADRANTS.map(([name, title, holds]) => el(`button.chip${name === comparing.show ? ".on" : ""}`,
    { type: "button", onclick: () => { comparing.show = name; comparing.at = 0; again(); } }, `${title} `, el("b", {}, count(holds).toLocaleString("en")))));
  const modes = modeButtons(view);
  const move = by => { comparing.at = Math.max(0, Math.min(rows.length - 1, comparing.at + by)); again(); };
  const list = el("ol.pairs", { "aria-label": "Questions" }, windowOf(rows, comparing.at).map(([place, [a, b]]) => el(`li${place === comparing.at ? ".here" : ""}`, {},
    el("button", { type: "button", onclick: () => { comparing.at = place; again(); } }, verdictMark(a), verdictMark(b), el("span", {}, data.question(a).text)))));
  const sides = rows.length ? el("article.episodes.two", {}, await episodeView(rows[comparing.at][0]), await episodeView(rows[comparing.at][1])) : el("p.lead", {}, "No question of this kind.");
  view.replaceChildren(
    el("div.tools", {}, pick("left", "A"), pick("right", "B"), modes.node),
    el("p.lead", {}, pairs.length ? summaryOf(pairs) : "No question is in both sets."), chips,
    el("div.beside", {}, list, sides));
  setMode(view, looking.mode);
  return { n: () => move(1), p: () => move(-1), j: () => move(1), k: () => move(-1), ArrowDown: () => move(1), ArrowUp: () => move(-1), ...modes.keys };
}

const windowOf = (rows, at) => { const first = Math.max(0, Math.min(at - 40, rows.length - 80)); return rows.slice(first, first + 80).map((row, i) => [first + i, row]); };

function summaryOf(pairs) {
  const share = side => pairs.filter(pair => data.right(pair[side])).length / pairs.length;
  return `${pairs.length.toLocaleString("en")} questions in both: exact match ${share(0).toFixed(3)} and ${share(1).toFixed(3)}, difference ${(share(1) - share(0) >= 0 ? "+" : "") + (share(1) - share(0)).toFixed(3)}. Intervals and tests: bash cmd/compare.sh`;
}
