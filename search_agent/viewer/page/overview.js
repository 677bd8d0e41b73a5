// The first page: what was learned, and what the searches were worth.

const GROUPS = [
  ["Score", ["reward", "em", "dev/sampled/em", "dev/greedy/em"], { floor: 0, ceiling: 1 }],
  ["Searches per question", ["searches", "dev/sampled/searches", "dev/greedy/searches"], { floor: 0 }],
  ["Evidence", ["evidence/found", "evidence/wrong_with", "evidence/answered_without"], { floor: 0, ceiling: 1 }],
  ["All evidence after search k", ["evidence/found_at_1", "evidence/found_at_2", "evidence/found_at_3"], { floor: 0, ceiling: 1 }],
  ["Budget of searches", ["budget/spent", "budget/price"], { floor: 0 }],
  ["Seconds of a search", ["search/latency_median_s", "search/latency_p95_s"], { floor: 0 }],
  ["Valid format", ["format_valid", "dev/sampled/format_valid"], { floor: 0, ceiling: 1 }],
  ["Tokens of the policy", ["policy_tokens", "dev/sampled/policy_tokens"], { floor: 0 }],
  ["Entropy", ["entropy"], { floor: 0 }],
  ["Seconds of a step", ["seconds/rollout", "seconds/learn", "seconds/step"], { floor: 0 }],
];
const chosen = { metric: "" };

function showOverview(view) {
  const measured = [...new Set(data.runs.flatMap(run => Object.keys(run.curves)))].sort();
  const figures = GROUPS.map(([title, names, axis]) => [title, seriesOf(names), axis]).filter(([, series]) => series.length)
    .map(([title, series, axis]) => lineChart(title, series, axis));
  view.replaceChildren(...data.runs.map(runLine));
  if (figures.length) view.append(el("h2", {}, "Learning"), el("div.grid", {}, figures, anyMetric(measured)));
  view.append(el("h2", {}, "Searches and evidence"), diagnosticsTable(), el("div.grid", {}, ...evidenceCharts()));
  return {};
}

function runLine(run) {
  return el("p.lead", {}, el("b", {}, run.name), ` ${run.episodes.toLocaleString("en")} episodes in ${Object.keys(run.stages).length} stages`);
}

function seriesOf(names) {
  const several = data.runs.length > 1;
  return data.runs.flatMap((run, r) => names.filter(name => run.curves[name]).map((name, i) => (
    { name: several ? `${run.name} ${name}` : name, xs: run.curves[name][0], ys: run.curves[name][1], tone: several ? r % 6 : i, dash: several ? i : 0 })));
}

function anyMetric(names) {
  const slot = el("div");
  const draw = () => slot.replaceChildren(lineChart(chosen.metric, seriesOf([chosen.metric])));
  chosen.metric ||= names.find(name => name === "grad_norm") ?? names[0];
  const pick = el("select", { "aria-label": "Metric", onchange: event => { chosen.metric = event.target.value; draw(); } },
    names.map(name => el("option", { value: name, selected: name === chosen.metric }, name)));
  draw();
  return el("div.any", {}, pick, slot);
}

const SAID = [
  ["n", "episodes", number, "Episodes, aborted ones included"],
  ["aborted", "aborted", number, "Ended by infrastructure: counted as wrong here, and never trained on"],
  ["searches", "searches", value => number(value, 2), "Searches per episode"],
  ["evidence_found", "evidence found", percent, "All evidence was shown, of the episodes that can be judged"],
  ["right_without_evidence", "right without evidence", percent, "The answer is right although not all evidence was shown"],
  ["answered_without_evidence", "answered without evidence", percent, "An answer was given although not all evidence was shown"],
  ["wrong_with_evidence", "found, still wrong", percent, "All evidence was shown, and the answer is wrong"],
  ["refinement_keeps_answer", "refinement keeps answer", percent, "Where a passage showed an accepted answer, a refinement repeats it"],
  ["duplicate_queries", "duplicate queries", percent, "Of all searches"],
  ["empty_searches", "nothing found", percent, "Of all searches"],
  ["refused_searches", "refused", percent, "Of all searches: requests that the tool would not carry out"],
  ["cached_searches", "cached", percent, "Of all searches"],
  ["latency_s", "latency", value => value ? `${milliseconds(1000 * value.median)} / ${milliseconds(1000 * value.p95)}` : "–", "Median / 95th percentile of searches that went to the server"],
];

function diagnosticsTable() {
  const stages = stagesOf();
  const rows = SAID.filter(([key]) => stages.some(({ stage }) => stage.summary[key] !== undefined));
  return el("div.scroller", {}, el("table.facts-table", {},
    el("thead", {}, el("tr", {}, el("th"), stages.map(({ name }) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows.map(([key, title, show, why]) => el("tr", { title: why }, el("th", { scope: "row" }, title),
      stages.map(({ stage }) => el("td", {}, show(stage.summary[key]))))))));
}

const stagesOf = () => data.runs.flatMap(run => Object.entries(run.stages).map(([name, stage]) => (
  { name: data.runs.length > 1 ? `${run.name} ${stageTitle(name)}` : stageTitle(name), stage })));

function evidenceCharts() {
  const stages = stagesOf();
  const lines = (pick, more = () => ({})) => stages.map(({ name, stage }, i) => {
    const ys = pick(stage);
    return { name, xs: ys.map((_, k) => k + 1), ys, tone: i % 6, ...more(stage) };
  });
  const spent = stages.map(({ name, stage }, i) => ({ name, tone: i % 6, xs: stage.by_searches.map(row => row.searches), ys: stage.by_searches.map(row => row.right),
    sizes: stage.by_searches.map(row => 1.6 + 4.5 * Math.sqrt(row.n / stage.summary.n)) }));
  const within = stages.map(({ name, stage }, i) => ({ name, tone: i % 6, xs: stage.by_searches.map(row => row.searches), ys: stage.by_searches.map(row => row.within) }));
  const axis = { floor: 0, ceiling: 1, xTitle: "searches" };
  return [lineChart("Right, of episodes with so many searches", spent, axis), lineChart("Right within so many searches", within, axis),
    lineChart("Some evidence after search k", lines(stage => stage.summary.hit_at ?? []), { ...axis, xTitle: "search" }),
    lineChart("All evidence after search k", lines(stage => stage.summary.found_at ?? []), { ...axis, xTitle: "search" }),
    lineChart("New evidence of search k", lines(stage => stage.summary.new_at ?? []), { ...axis, xTitle: "search" })];
}
