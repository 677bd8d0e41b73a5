// Where one is (the address after #), keys, theme.

const ROUTES = [
  [/^#\/episodes$/, view => showTable(view)],
  [/^#\/episode\/(\d+)$/, (view, number) => showEpisode(view, Math.min(Number(number), data.count - 1))],
  [/^#\/compare$/, view => showCompare(view)],
  [/^/, view => showOverview(view)],
];
const KEYS = [["j k ↑ ↓", "next, previous row"], ["Enter", "open the episode"], ["n p ← →", "next, previous episode of the table"], ["Esc", "back to the table"],
  ["/", "filter"], ["1 2 3", "blocks, log-prob, trained"], ["g e c", "overview, episodes, compare"], ["t", "light or dark"], ["?", "these keys"]];
let keys = {}, turn = 0;

const go = hash => { if (location.hash === hash) route(); else location.hash = hash; };

async function route() {
  const mine = ++turn, view = $("#view"), hash = location.hash || "#/";
  hint("");
  const [pattern, show] = ROUTES.find(([form]) => form.test(hash));
  for (const link of document.querySelectorAll("nav a")) {
    const active = link.hash === "#/" ? hash === "#/" : hash.startsWith(link.hash.replace(/s$/, ""));
    link.toggleAttribute("aria-current", active);
  }
  view.dataset.page = hash.split("/")[1] || "overview";
  try {
    const found = await show(view, ...hash.match(pattern).slice(1));
    if (mine === turn) { keys = found; if (view.dataset.page !== "episodes") scrollTo(0, 0); }
  } catch (error) { view.replaceChildren(el("p.lead", {}, `This cannot be shown: ${error.message}`)); }
}

function theme(next) {
  const root = document.documentElement;
  try { if (next) localStorage.setItem("sleuth-theme", next); next ??= localStorage.getItem("sleuth-theme"); } catch { /* a file may be denied storage */ }
  root.dataset.theme = next ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select, textarea");
  if (typing) { if (event.key === "Escape" || (event.key === "Enter" && event.target.matches("input"))) { event.target.blur(); $(".table")?.focus(); event.preventDefault(); } return; }
  if (event.key === "Enter" && event.target.matches("a, button, summary")) return;
  const act = { g: () => go("#/"), e: () => go("#/episodes"), c: () => go("#/compare"), t: () => $("#theme").click(), "?": () => $("#help").click(), ...keys }[event.key];
  if (act && !$("#keys").open) { event.preventDefault(); act(); }
});
addEventListener("hashchange", route);

$("#theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
$("#help").addEventListener("click", () => $("#keys").showModal());
$("#keys").append(el("h2", {}, "Keys"), el("dl", {}, KEYS.flatMap(([key, does]) => [el("dt", {}, key.split(" ").map(one => el("kbd", {}, one))), el("dd", {}, does)])),
  el("form", { method: "dialog" }, el("button", {}, "Close")));
$("#keys").addEventListener("click", event => { if (event.target === $("#keys")) $("#keys").close(); });

theme();
data.open().then(() => {
  const names = data.runs.map(run => run.name).join(" · ");
  $("#names").textContent = names;
  document.title = `${names} – Sleuth`;
  refreshListing();
  return route();
}).catch(error => { $("#view").replaceChildren(el("p.lead", {}, `The page is damaged: ${error.message}`)); });
