"use strict";
// The list of runs: drawn from the data of the page, then from /runs.json, row by row, so that what is read or focused stays.
(() => {
  const { data, $, el, svg, number, count, line } = page;
  const WORDS = { fail: "FAIL", warn: "WARN", pass: "PASS", insufficient: "UNSURE", unread: "NOT READ", pending: "READING" };
  const TONES = { insufficient: "unsure", unread: "warn", pending: "" };
  const ORDER = ["fail", "warn", "insufficient", "pass", "unread", "pending"];
  const TRAINING_SECONDS = 180, EVERY = 3000, SOON = 700;
  const rows = new Map();
  let listing = data, version = data.version, wanted = "", paused = false, timer = null, failed = false;

  const own = (words, key) => (Object.hasOwn(words, key) ? words[key] : "");
  function ago(seconds) {
    if (seconds < 60) return "just now";
    for (const [unit, size, most] of [["min", 60, 3600], ["h", 3600, 172800], ["days", 86400, Infinity]]) if (seconds < most) return `${Math.floor(seconds / size)} ${unit} ago`;
    return "";
  }
  function spark(curve) {
    const values = curve.values, low = Math.min(...values), span = Math.max(...values) - low, last = values.length - 1;
    const points = values.map((v, i) => `${((100 * i) / Math.max(1, last)).toFixed(1)},${(span > 0 ? 28 - (26 * (v - low)) / span : 28).toFixed(1)}`).join(" ");
    const said = `${line(curve.label, 40)}: ${number(values[0])} to ${number(values[last])}`;
    return el("figure", { class: "spark", role: "img", "aria-label": said, title: said },
      svg("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("polyline", { points })),
      el("span", { "aria-hidden": "true" }, el("i", {}, line(curve.label, 40)), el("b", {}, number(values[0]), " → ", number(values[last]))));
  }
  const training = (run) => run.ended === false && Date.now() / 1000 - run.changed < TRAINING_SECONDS;
  function when(run) {
    const changed = new Date(1000 * run.changed);
    const step = run.step === null ? "" : `step ${count(run.step)}${run.total ? ` / ${count(run.total)}` : ""}`;
    const time = run.changed ? el("time", { datetime: changed.toISOString(), title: changed.toLocaleString() }, ago(Date.now() / 1000 - run.changed)) : "";
    return [el("b", {}, step), training(run) ? el("span", { class: "training" }, "training") : run.ended === true ? ["ended ", time] : time];
  }
  // What a row shows; where that stays, the row is not touched.
  function draw(run) {
    const state = JSON.stringify([run, training(run)]), before = rows.get(run.key);
    const row = before ? before.row : el("li", {}, el("span", {}), el("div", { class: "what" }, el("h2", {}, el("a", { href: `/run/${run.key}` })), el("p", { class: "said" })), el("span"), el("span"), el("p", { class: "when" }));
    if (before && before.state === state) { row.querySelector(".when").replaceChildren(...when(run).flat()); return row; }
    const verdict = Object.hasOwn(WORDS, run.verdict) ? run.verdict : "pending";
    row.className = `run ${verdict}`;
    const [badge, what, first, second, time] = row.children;
    badge.className = `badge ${Object.hasOwn(TONES, verdict) ? TONES[verdict] : verdict}`;
    badge.textContent = WORDS[verdict];
    what.querySelector("a").textContent = line(run.name, 200);
    const facts = [run.trainer, run.attempt === null ? "" : `attempt ${run.attempt}`].filter(Boolean).map((one) => line(one, 60)).join(", ");
    what.querySelector(".said").textContent = [facts, line(run.said, 400)].filter(Boolean).join(" · ");
    [first, second].forEach((old, i) => old.replaceWith(run.curves[i] ? spark(run.curves[i]) : el("span")));
    time.replaceChildren(...when(run).flat());
    rows.set(run.key, { row, state });
    return row;
  }
  const fits = (run) => {
    const find = $("find").value.toLowerCase();
    return (!wanted || run.verdict === wanted) && (!find || `${run.name} ${run.said} ${run.trainer}`.toLowerCase().includes(find));
  };
  function order() {
    const shown = listing.runs.map((run) => [run, draw(run)]), list = $("runs");
    const known = new Set(listing.runs.map((run) => run.key));
    for (const [key, { row }] of rows) if (!known.has(key)) { row.remove(); rows.delete(key); }
    // Only rows that stand elsewhere are moved: a move takes the focus away.
    let place = list.firstElementChild;
    for (const [run, row] of shown) {
      row.hidden = !fits(run);
      if (row === place) place = place.nextElementSibling;
      else list.insertBefore(row, place);
    }
    const visible = shown.filter(([run]) => fits(run)).length;
    $("none").hidden = visible > 0;
    $("none").textContent = listing.runs.length ? "No run fits; clear the words or choose another verdict." : "No runs are here yet. They show up by themselves when training begins.";
  }
  function counts() {
    const found = ORDER.map((verdict) => [verdict, listing.runs.filter((run) => run.verdict === verdict).length]).filter(([verdict, amount]) => amount || verdict === wanted);
    const said = JSON.stringify([found, wanted]);
    if ($("counts").dataset.said === said) return;
    const focused = $("counts").contains(document.activeElement) ? document.activeElement.dataset.verdict : null;
    $("counts").dataset.said = said;
    $("counts").replaceChildren(...found.map(([verdict, amount]) => el("li", {}, el("button", { type: "button", "data-verdict": verdict, "aria-pressed": String(verdict === wanted),
      onclick: () => { wanted = wanted === verdict ? "" : verdict; show(); } }, el("b", {}, amount), own(WORDS, verdict)))));
    if (focused) $("counts").querySelector(`[data-verdict=${focused}]`)?.focus();
    const grave = found.filter(([verdict]) => verdict === "fail" || verdict === "warn").map(([verdict, amount]) => `${amount} ${WORDS[verdict]}`).join(", ");
    document.title = `${grave ? `${grave} · ` : ""}rlmon: ${page.plural(listing.runs.length, "run", "runs")}`;
  }
  function show() {
    order();
    counts();
    say();
  }
  function say() {
    $("served-said").className = `follow small ${failed ? "off" : paused ? "" : "on"}`;
    $("served-said").textContent = failed ? "server gone" : paused ? "paused" : "live";
  }
  function told(before) {
    const words = new Map(before.map((run) => [run.key, run.verdict]));
    const news = listing.runs.filter((run) => words.get(run.key) !== run.verdict && (run.verdict === "fail" || run.verdict === "warn"));
    if (news.length && news.length < 4) $("news").textContent = news.map((run) => `${line(run.name, 100)}: ${WORDS[run.verdict]}`).join(". ");
  }
  async function look() {
    clearTimeout(timer);
    if (paused || document.hidden) return;
    try {
      const answer = await fetch("/runs.json", { headers: { "If-None-Match": `"${version}"` } });
      if (answer.status === 200) {
        const before = listing.runs;
        version = answer.headers.get("etag").replaceAll('"', "");
        listing = await answer.json();
        failed = false;
        show();
        told(before);
      } else if (failed && answer.status === 304) { failed = false; show(); }
    } catch { failed = true; say(); }
    timer = setTimeout(look, listing.runs.some((run) => run.pending) ? SOON : EVERY);
  }
  $("find").addEventListener("input", order);
  $("served-pause").addEventListener("click", () => {
    paused = !paused;
    $("served-pause").setAttribute("aria-pressed", String(paused));
    say();
    look();
  });
  document.addEventListener("visibilitychange", look);
  setInterval(() => { if (!document.hidden && !paused) order(); }, 30000);
  show();
  page.themes();
  timer = setTimeout(look, SOON);
})();
