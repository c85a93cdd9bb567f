"use strict";
// Every string of a run reaches the page through textContent (el and svg in page.js); nothing here writes markup.
(() => {
  const { data, $, el, svg, table, css, swatch, show, scroll, lazyTable } = page;
  const { number, count, plural, share, shareBar, UNSEEN, HARMLESS, escaped, line } = page;
  const { LEFT, RIGHT, view, cursors, drawings, point, steerable, hoverable, scaleX, place, drawing, nearest, evenly, stacked } = page;
  const { undelta, valueAt, numbersTable, curve, mountCurves, stepAxis, named, savers, linesTable } = page;
  const SAMPLES_PER_PAGE = 8;
  const WORDS = { fail: "FAIL", warn: "WARN", note: "NOTE", pass: "PASS", skip: "SKIP", error: "ERROR", unsure: "UNSURE" };
  const word = (status) => (Object.hasOwn(WORDS, status) ? WORDS[status] : "?");

  function rich(text, search) {
    const parts = [], source = String(text).replace(/\r\n/g, "\n");
    const plain = (piece) => {
      let from = 0;
      for (const found of piece.matchAll(UNSEEN)) {
        if (HARMLESS.has(found[0])) continue;
        parts.push(piece.slice(from, found.index), el("span", { class: "ctl" }, escaped(found[0])));
        from = found.index + found[0].length;
      }
      parts.push(piece.slice(from));
    };
    if (!search) { plain(source); return parts; }
    const low = source.toLowerCase(), want = search.toLowerCase();
    let from = 0;
    // Lower case may be longer than the text (İ); then nothing is marked.
    for (let at = low.indexOf(want); low.length === source.length && at >= 0; at = low.indexOf(want, from)) {
      plain(source.slice(from, at));
      const inner = parts.length;
      plain(source.slice(at, at + want.length));
      parts.push(el("mark", {}, ...parts.splice(inner)));
      from = at + want.length;
    }
    plain(source.slice(from));
    return parts;
  }
  const badge = (status) => el("span", { class: `badge ${Object.hasOwn(WORDS, status) ? status : ""}` }, word(status));
  function facts(value) {
    if (value === null || value === undefined) return "–";
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (typeof value === "number") return number(value);
    if (Array.isArray(value)) return value.length ? value.map(facts).join(", ") : "none";
    if (typeof value === "object") return value.pairs.length ? value.pairs.map(([key, item]) => `${line(key, 80)}: ${facts(item)}`).join("; ") : "none";
    return line(value, 500);
  }
  // As the eye reads it: arrows between numbers, no line break before a per cent sign.
  const prose = (text, limit) => line(text, limit).replace(/(\d) -> (?=[-\d])/g, "$1\u00a0→\u00a0").replaceAll(" %", "\u00a0%");
  const words = (key) => line(key, 80).replaceAll("_", " ");
  const pairs = (target, items) => target.append(...items.flatMap(([key, value]) => [el("dt", {}, words(key)), el("dd", {}, facts(value))]));
  const find = (items, key) => (items.find(([name]) => name === key) || [null, null])[1];

  // ---- verdict
  const run = data.run;
  $("run-id").textContent = line(run.id, 200);
  $("verdict").classList.add(["pass", "warn", "fail"].includes(data.verdict) ? data.verdict : "insufficient");
  $("verdict-word").textContent = line(data.verdict_word, 60);
  $("headline").textContent = prose(data.headline, 1200);
  if (data.headline.length > 180) {
    $("headline").classList.add("long");
    $("headline").tabIndex = 0;  // It scrolls in a narrow window, for the keyboard too.
  }
  const byStatus = (...statuses) => data.checks.map((check, index) => ({ ...check, index })).filter((check) => statuses.includes(check.status));
  for (const [status, target] of [["fail", data.incidents.length ? "happened" : "checks-bad"], ["warn", data.incidents.length ? "happened" : "checks-bad"], ["error", "checks-bad"], ["note", "checks-note"], ["pass", "checks-pass"], ["unsure", "checks-skip"], ["skip", "checks-skip"]]) {
    const amount = byStatus(status).length;
    if (amount) $("counts").append(el("li", {}, el("a", { href: `#${target}` }, el("b", {}, amount), word(status))));
  }
  const isNothing = (value) => value === null || value === 0 || value === "" || (Array.isArray(value) && !value.length) || (value && value.pairs && !value.pairs.length);
  const fact = (name, value, small) => $("facts").append(el("div", {}, el("dt", {}, name), el("dd", {}, line(value, 60), small ? el("small", {}, small) : "")));
  fact("Completions", count(run.completions), `${plural(run.prompts, "prompt", "prompts")}${run.group_size ? `, groups of ${run.group_size}` : ""}${run.eval_completions ? `; ${count(run.eval_completions)} of evaluations` : ""}`);
  fact("Steps", count(run.steps), run.first_step === null ? "none" : `${run.first_step} to ${run.last_step}`);
  const kind = find(run.baseline, "kind");
  fact("Baseline", kind ? words(kind) : "none", run.baseline.filter(([key, value]) => key !== "kind" && !isNothing(value))
    .map(([key, value]) => (key === "steps" && Array.isArray(value) ? `steps ${facts(value[0])} to ${facts(value.at(-1))}` : `${facts(value)} ${words(key)}`)).join(", "));
  fact("What was read", run.read.length ? `${run.read[0][1]} ${run.read[0][0]}` : "nothing",
    run.read.slice(1, 4).map(([key, value]) => `${key} ${line(value, 90)}`).join("; "));
  fact("Read as", line(run.reader, 60), line(run.source, 160));
  $("notes").append(...[...data.missing, ...run.notes].map((note) => el("li", {}, line(note, 600))));

  // ---- texts
  // Of a long text both ends: what a model answers stands at the end. The rest is a button away.
  const HEAD = 260, TAIL = 520, HEAD_LINES = 4, TAIL_LINES = 9;
  function text(index, search) {
    const [head, missing, tail] = data.texts[index];
    const box = el("pre", { class: "text", dir: "auto" }), whole = [head, tail];
    const gap = (amount, said) => el("span", { class: "gap" }, `… ${count(amount)} ${said} …`);
    const parts = head.slice(0, HEAD).split("\n"), first = parts.length > HEAD_LINES ? `${parts.slice(0, HEAD_LINES).join("\n")}\n` : head.slice(0, HEAD);
    const rest = missing ? tail : head, ends = rest.slice(-TAIL).split("\n"), last = ends.length > TAIL_LINES ? ends.slice(-TAIL_LINES).join("\n") : rest.slice(-TAIL);
    const hidden = head.length + tail.length + missing - first.length - last.length;
    const full = () => box.replaceChildren(...rich(whole[0], search), ...(missing ? [gap(missing, "characters were not kept here"), ...rich(whole[1], search)] : []));
    const short = () => box.replaceChildren(...rich(first, ""), gap(hidden, "characters left out"), ...rich(last, ""));
    if (search || hidden < 120) { full(); return [box]; }
    short();
    const more = el("button", { type: "button", class: "more", "aria-expanded": "false" }, "Show all");
    more.addEventListener("click", () => {
      const open = more.getAttribute("aria-expanded") !== "true";
      if (open) full(); else short();
      more.textContent = open ? "Show less" : "Show all";
      more.setAttribute("aria-expanded", String(open));
    });
    return [box, more];
  }
  const metaOf = (example) => el("ul", { class: "meta" },
    example.label ? el("li", {}, el("b", {}, line(example.label, 40))) : "",
    el("li", {}, "step ", el("b", {}, count(example.step))),
    el("li", {}, line(example.mode, 60)),
    el("li", {}, "reward ", el("b", {}, number(example.reward))),
    example.advantage === null ? "" : el("li", {}, "advantage ", el("b", {}, number(example.advantage))),
    example.truncated ? el("li", { class: "warn" }, "truncated") : "");
  function exampleCard(example, { promptSearch = "", textSearch = "", full = false } = {}) {
    const meta = metaOf(example);
    if (full) meta.append(el("li", {}, line(example.split, 20)), el("li", {}, "source ", line(example.source, 60)), el("li", {}, "prompt ", line(example.prompt_id, 60)), el("li", {}, "template ", line(example.template, 60)));
    return el("div", { class: "example" }, meta,
      example.prompt === null ? (full ? el("div", { class: "prompt" }, el("p", { class: "cap" }, "Prompt"), el("p", { class: "dim" }, "not kept")) : "") : el("div", { class: "prompt" }, el("p", { class: "cap" }, "Prompt"), text(example.prompt, promptSearch)),
      el("div", {}, el("p", { class: "cap" }, "Completion"), example.completion === null ? el("p", { class: "dim" }, "not kept") : text(example.completion, textSearch)));
  }

  // ---- checks
  const METHODS = { fold: "looked at every step", hindsight: "one look at the whole run", exact: "an exact count" };
  function gauge(check) {
    const { value, baseline, threshold, interval } = check;
    if (typeof value !== "number" || (typeof baseline !== "number" && typeof threshold !== "number")) return "";
    const known = [value, baseline, threshold, ...(interval || [])].filter((v) => typeof v === "number");
    let low = Math.min(...known), high = Math.max(...known);
    if (low >= 0 && low < 0.6 * high) low = 0;
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    high += room;
    if (low !== 0) low -= room;
    const x = (v) => 8 + (314 * (v - low)) / (high - low || 1);
    const parts = [svg("line", { class: "scale", x1: 8, x2: 322, y1: 34, y2: 34 })];
    if (typeof threshold === "number" && typeof baseline === "number" && threshold !== baseline)
      parts.push(svg("line", { class: "zone", x1: threshold < baseline ? 8 : x(threshold), x2: threshold < baseline ? x(threshold) : 322, y1: 34, y2: 34 }));
    if (interval) parts.push(svg("line", { class: "interval", x1: x(interval[0]), x2: x(interval[1]), y1: 34, y2: 34 }));
    const label = (v, y, words, cls) => svg("text", { x: Math.min(318, Math.max(12, x(v))), y, class: cls, "text-anchor": x(v) < 60 ? "start" : x(v) > 270 ? "end" : "middle" }, words);
    if (typeof threshold === "number") parts.push(svg("line", { class: "limit", x1: x(threshold), x2: x(threshold), y1: 24, y2: 44 }), label(threshold, 70, `line ${number(threshold)}`));
    if (typeof baseline === "number") parts.push(svg("circle", { class: "base", cx: x(baseline), cy: 34, r: 6 }), label(baseline, 56, `base ${number(baseline)}`));
    parts.push(svg("circle", { class: `now ${check.status}`, cx: x(value), cy: 34, r: 7 }), label(value, 18, number(value), "now-text"));
    return svg("svg", { class: "gauge", viewBox: "0 0 330 76", role: "img", "aria-label": `now ${number(value)}, base ${number(baseline)}, line ${number(threshold)}` }, ...parts);
  }
  const stepLink = (step) => el("a", { href: `#step-${step}` }, count(step));
  // Ids are kebab-case; of one that is not, its place is taken.
  const anchor = (check) => `check-${/^[a-z0-9-]{1,60}$/.test(check.id) ? check.id : check.index}`;
  function checkCard(check) {
    const meta = [];
    const item = (name, value) => meta.push(el("li", {}, `${name} `, el("b", {}, value)));
    if (check.first_step !== null) item(check.at_latest ? "began by step" : "began at step", stepLink(check.first_step));
    if (check.alarm_step !== null) item("confirmed at step", stepLink(check.alarm_step));
    if (check.source !== null) item("mostly in source", line(check.source, 60));
    if (check.interval !== null) item("interval", `${number(check.interval[0])} to ${number(check.interval[1])}`);
    if (check.metric !== null) item("metric", `${line(check.metric, 80)}${check.unit ? `, ${line(check.unit, 40)}` : ""}`);
    item("method", Object.hasOwn(METHODS, check.method) ? METHODS[check.method] : "–");
    return el("article", { class: `check ${check.status}`, id: anchor(check) },
      el("div", { class: "check-head" }, badge(check.status), el("h3", {}, line(check.title, 200)), el("a", { class: "mono quieter", href: `#${anchor(check)}` }, line(check.id, 80))),
      el("div", { class: "check-body" },
        el("div", {}, el("p", {}, prose(check.message, 700)),
          check.reason ? el("p", {}, line(check.reason, 700)) : "",
          el("ul", { class: "meta" }, ...meta),
          check.advice ? el("p", { class: "advice" }, el("b", {}, "What to do"), line(check.advice, 900)) : ""),
        el("div", {}, gauge(check))),
      el("div", { class: "behind" }, check.examples.length && !told.has(check.index) ? el("details", {}, el("summary", {}, plural(check.examples.length, "completion that shows it", "completions that show it")), el("div", { class: "side" }, ...check.examples.map((example) => exampleCard(example)))) : "",
      check.evidence.length ? el("details", {}, el("summary", {}, "Evidence"), evidence(check.evidence)) : ""));
  }
  function evidence(items) {
    const list = el("dl", { class: "pairs" });
    pairs(list, items);
    return list;
  }
  // ---- what happened: one story for all checks that saw it
  const told = new Set(data.incidents.flatMap((one) => one.checks));
  const indexed = data.checks.map((check, index) => ({ ...check, index }));
  const pictures = [];
  function incidentCard(one, place) {
    const checks = one.checks.map((index) => indexed[index]);
    const facts = [];
    if (one.began !== null) facts.push(el("li", {}, one.at_latest ? "began by step " : "began at step ", el("b", {}, stepLink(one.began))));
    if (one.confirmed !== null) facts.push(el("li", {}, "confirmed at step ", el("b", {}, stepLink(one.confirmed))));
    const same = one.pair.length === 2 && one.pair[0].prompt_id === one.pair[1].prompt_id;
    const side = { base: "Before: a completion of the base", now: same ? "Now: the same prompt" : "Now: a completion of the end" };
    const pair = one.pair.map((example) => el("div", { class: "then" }, el("h3", {}, side[example.label] || line(example.label, 40)), exampleCard({ ...example, label: "" })));
    const picture = el("div", { class: "charts" });
    const chart = data.charts.find((chart) => chart.checks.includes(one.checks[0]));
    // The shares above are the picture of a narrowing; another event has its own curve.
    if (chart && !(data.shares && one.kind === "narrowing")) pictures.push([picture, chart]);
    return el("article", { class: `incident ${one.severity}`, id: `incident-${place + 1}` },
      // The headline says it already where nothing else happened.
      data.incidents.length > 1 ? el("div", { class: "check-head" }, badge(one.severity), el("h3", {}, prose(one.sentence, 900))) : "",
      facts.length ? el("ul", { class: "meta" }, ...facts) : "",
      one.openings ? el("p", {}, line(one.openings, 900)) : "",
      picture,
      pair.length ? el("div", { class: "side" }, ...pair) : "",
      one.setting ? el("p", { class: "advice" }, el("b", {}, "Change first"), line(one.setting, 900)) : "",
      el("details", { class: "fold" }, el("summary", {}, plural(checks.length, "check saw it", "checks saw it"), ": ", checks.map((check) => line(check.id, 60)).join(", ")),
        el("div", { class: "cards" }, ...checks.map(checkCard))));
  }
  if (!data.incidents.length) $("h-happened").textContent = "Answer formats";
  else {
    show("happened");
    $("incidents").append(...data.incidents.map(incidentCard));
  }
  if (data.checks.length) {
    show("checks");
    const bad = byStatus("fail", "warn", "error").filter((check) => !told.has(check.index)), noted = byStatus("note"), passed = byStatus("pass"), skipped = byStatus("unsure", "skip");
    $("checks-bad").append(...bad.map(checkCard));
    if (noted.length) {
      show("checks-note");
      $("checks-note").append(el("div", { class: "cards" }, ...noted.map(checkCard)));
    }
    const fold = (id, words) => show(id).querySelector("summary").append(words);
    if (passed.length) {
      const rows = passed.map((check) => ({ id: anchor(check), cells: [el("span", {}, badge("pass"), ` ${line(check.title, 200)} `, el("small", { class: "mono dim" }, line(check.id, 80))), el("span", {}, prose(check.message, 500), check.evidence.length ? el("details", {}, el("summary", {}, "Evidence"), evidence(check.evidence)) : ""),
        number(check.baseline), number(check.value), number(check.threshold), line(check.unit || "", 40)] }));
      fold("checks-pass", plural(passed.length, "check passed", "checks passed"));
      $("checks-pass").append(scroll("Checks that passed", table(el("table"), ["check", "what was seen", "base", "now", "line", "unit"], rows, new Set([2, 3, 4]))));
    }
    if (skipped.length) {
      const reasons = new Map();
      for (const check of skipped) {
        const reason = check.status === "unsure" ? `${check.message}: ${check.reason}` : check.reason || "no reason was given";
        reasons.set(reason, [...(reasons.get(reason) || []), check]);
      }
      const unsure = skipped.filter((check) => check.status === "unsure").length;
      fold("checks-skip", plural(skipped.length, "check could not be judged", "checks could not be judged"));
      $("checks-skip").open = unsure > 0 && data.verdict !== "fail";
      $("checks-skip").append(el("ul", { class: "skips" }, ...[...reasons].map(([reason, checks]) => el("li", {}, badge(checks[0].status), " ", el("b", {}, checks.flatMap((check, i) => [i ? " · " : "", el("span", { id: anchor(check) }, line(check.title, 200))])), el("p", {}, line(reason, 700))))));
    }
  }

  // ---- timeline
  const KINDS = { onset: "began", finding: "confirmed", action: "intervention", fault: "fault of the monitor", note: "note" };
  const kindOf = (event) => (Object.hasOwn(KINDS, event.kind) ? event.kind : "note");
  const severityOf = (event) => (["fail", "warn", "note"].includes(event.severity) ? event.severity : "info");
  function markOf(kind, severity, x, y, r = 5) {
    const cls = kind === "action" ? "mark-action" : `mark-${severity}`;
    if (kind === "onset") return svg("path", { class: cls, d: `M${x} ${y - r - 1}V${y + r + 1}`, "stroke-width": 3 });
    if (kind === "finding") return svg("path", { class: cls, d: `M${x} ${y - r}L${x + r} ${y + r * 0.8}H${x - r}Z` });
    if (kind === "action") return svg("path", { class: cls, d: `M${x} ${y - r}L${x + r} ${y}L${x} ${y + r}L${x - r} ${y}Z` });
    if (kind === "fault") return svg("path", { class: cls, d: `M${x - 4} ${y - 4}L${x + 4} ${y + 4}M${x + 4} ${y - 4}L${x - 4} ${y + 4}`, "stroke-width": 2 });
    return svg("circle", { class: cls, cx: x, cy: y, r: 3 });
  }
  const lanes = new Map();
  const laneOf = (key) => lanes.get(key) || lanes.set(key, { events: [], from: null, status: "warn" }).get(key);
  for (const check of byStatus("fail", "warn", "note")) {
    if (check.first_step === null && check.alarm_step === null) continue;
    const lane = laneOf(check.id);
    lane.status = check.status;
    lane.from = check.first_step;
  }
  for (const event of data.events) laneOf(event.kind === "action" ? (event.check === null ? "interventions" : `rule ${event.check}`) : event.check !== null ? event.check : "run").events.push(event);
  const laneList = [...lanes].slice(0, 16);
  if (data.steps && laneList.length) {
    show("story"); show("timeline");
    const kinds = [...new Set(data.events.map(kindOf))];
    const gravest = (kind) => ["fail", "warn", "note", "info"].find((severity) => data.events.some((event) => kindOf(event) === kind && severityOf(event) === severity));
    const named = (kind) => (kind === "finding" && gravest(kind) === "note" ? KINDS.note : KINDS[kind]);
    $("timeline-legend").append(...Object.keys(KINDS).filter((kind) => kinds.includes(kind)).map((kind) =>
      el("li", {}, svg("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, markOf(kind, gravest(kind), 6, 6, 5)), named(kind))));
    const holder = $("timeline-drawing"), HEIGHT = 38;
    $("timeline").querySelector("figcaption").append(savers("Timeline", () => holder.firstChild, () => [["step", "what", "level", "check", "text"], ...data.events.map((event) => [event.step, KINDS[kindOf(event)], severityOf(event), event.check, event.text])]));
    holder.setAttribute("aria-label", `Timeline of ${plural(data.events_total, "event", "events")}. ` + laneList.map(([key, lane]) =>
      `${line(key, 60)}: ${lane.events.length ? lane.events.slice(0, 4).map((event) => `${kindOf(event)} at step ${event.step}`).join(", ") : `from step ${lane.from}`}`).join("; ").slice(0, 1500));
    let rule = null, width = 0;
    const draw = (wide) => {
      width = wide;
      const x = scaleX(wide), height = laneList.length * HEIGHT + 34;
      const parts = [];
      laneList.forEach(([key, lane], i) => {
        const y = i * HEIGHT + 25;
        parts.push(svg("text", { class: "lane", x: LEFT, y: y - 11 }, line(key, 60)), svg("line", { class: "lane-line", x1: LEFT, x2: wide - RIGHT, y1: y, y2: y }));
        if (lane.from !== null && lane.from <= view.to) parts.push(svg("rect", { class: `span-${lane.status}`, x: x(Math.max(view.from, lane.from)), y: y - 5, width: Math.max(2, wide - RIGHT - x(Math.max(view.from, lane.from))), height: 10, rx: 3 }));
        let busy = LEFT + 7 * Math.min(60, key.length);
        for (const event of lane.events) {
          if (event.step < view.from || event.step > view.to) continue;
          const mark = markOf(kindOf(event), severityOf(event), x(event.step), y);
          mark.append(svg("title", {}, `step ${event.step}: ${line(event.text, 200)}`));
          parts.push(mark);
          const words = `${event.kind === "finding" ? `${word(event.severity)} ` : ""}${event.step}`;
          if (x(event.step) - 12 > busy && x(event.step) + 40 < wide) { parts.push(svg("text", { x: x(event.step) - 3, y: y - 11 }, words)); busy = x(event.step) + 7 * words.length; }
        }
      });
      parts.push(...stepAxis(wide, height - 30));
      rule = svg("line", { class: "cursor", y1: 0, y2: height - 30 });
      holder.replaceChildren(svg("svg", { width: wide, height }, ...parts, rule));
    };
    drawing(holder, draw);
    cursors.push((step) => place(rule, step, width));
    hoverable(holder, () => width);
    const stops = [...new Set(data.events.map((event) => event.step).concat(data.checks.map((check) => check.first_step).filter((step) => step !== null)))].sort((a, b) => a - b);
    steerable(holder, stops, "Timeline", () => data.events.filter((event) => event.step === view.step).map((event) => `${event.check !== null ? `${line(event.check, 60)} ` : ""}${KINDS[kindOf(event)]}, ${line(event.text, 200)}`).join("; ") || "no event");
    lazyTable($("timeline").querySelector("details"), () => table($("timeline-table"), ["step", "what", "level", "check", "in words"],
      data.events.map((event) => ({ cells: [count(event.step), KINDS[kindOf(event)], severityOf(event).toUpperCase(), event.check === null ? "" : line(event.check, 80), line(event.text, 500)] })), new Set([0])));
    if (data.events_total > data.events.length) $("timeline").append(el("p", { class: "dim small" }, `The gravest ${data.events.length} of ${count(data.events_total)} events are shown.`));
  }
  const bySeverity = (kind, severity) => data.events.filter((event) => event.kind === kind && event.severity === severity).map((event) => event.step);
  const firstAlarm = Math.min(...bySeverity("finding", "fail"));

  // ---- acts of the policy
  if (data.acts.length) {
    show("acts");
    $("acts-said").textContent = line(data.acts_said, 300) + (data.acts_total > data.acts.length ? `. The newest ${data.acts.length} are shown.` : "");
    const OUTCOMES = { applied: ["APPLIED", "applied"], failed: ["FAILED", "fail"], "dry run": ["WOULD", "would"], decided: ["DECIDED", ""] };
    const EFFECTS = { helped: "pass", harmed: "warn" };
    const outcome = (act) => { const [said, cls] = Object.hasOwn(OUTCOMES, act.outcome) ? OUTCOMES[act.outcome] : ["?", ""]; return el("span", { class: `badge ${cls}` }, said); };
    const effect = (act) => (!act.effect ? "" : Object.hasOwn(EFFECTS, act.effect) ? el("span", { class: `badge ${EFFECTS[act.effect]}` }, act.effect) : line(act.effect, 80));
    const rows = data.acts.map((act) => ({ class: act.outcome === "dry run" ? "idle" : null, cells: [
      act.count > 1 ? `${count(act.first_step)} to ${count(act.step)}` : count(act.step),
      line(act.rule, 64),
      el("span", {}, outcome(act), " ", prose(act.change, 120), act.count > 1 ? ` ${count(act.count)} times` : ""),
      effect(act),
      el("span", {}, prose(act.why, 500), act.measured ? el("small", {}, prose(act.measured, 300)) : "")] }));
    table($("acts-table"), ["step", "rule", "what was done", "effect", "why"], rows, new Set());
  }

  // ---- stacked shares
  if (data.shares) {
    show("happened"); show("shares");
    const { steps, rows, pooled_steps: pooled } = data.shares;
    $("shares-note").textContent = pooled > 1 ? `means of up to ${pooled} steps` : "of the completions of a step";
    const outputs = rows.map((row) => {
      const output = el("output");
      $("shares-legend").append(el("li", {}, swatch(row.colour), line(row.mode, 40), output));
      return output;
    });
    const holder = $("shares-drawing"), caption = $("shares").querySelector("figcaption");
    caption.append(savers("Share of each answer format", () => holder.firstChild, () => linesTable(rows.map((row) => row.mode), rows.map((row) => ({ steps, values: row.values })))));
    const HEIGHT = 250, TOP = 16, BOTTOM = 34;
    const narrow = data.incidents.find((one) => one.kind === "narrowing" || one.kind === "numbers"), [begun, sure] = narrow ? [narrow.began, narrow.confirmed] : [null, null];
    holder.setAttribute("aria-label", "Share of each answer format over steps. " + rows.map((row) => `${line(row.mode, 40)} from ${share(row.values[0])} to ${share(row.values.at(-1))}`).join("; ").slice(0, 1500) + ".");
    let rule = null, width = 0;
    drawing(holder, (wide) => {
      width = wide;
      const x = scaleX(wide), y = (v) => HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * Math.min(1, Math.max(0, v));
      const { from, to } = view, within = steps.map((_, i) => i).filter((i) => (steps[i + 1] ?? steps[i]) >= from && (steps[i - 1] ?? steps[i]) <= to);
      // One step alone is drawn as a bar of the whole width.
      const places = within.length === 1 ? [[from, within[0]], [to, within[0]]] : within.map((i) => [Math.min(to, Math.max(from, steps[i])), i]);
      const parts = stacked(rows.map((row) => [line(row.mode, 60), row.colour, row.values]), places, x, y);
      for (const v of [0, 0.25, 0.5, 0.75, 1]) {
        parts.push(svg("line", { class: "grid", x1: LEFT, x2: wide - RIGHT, y1: y(v), y2: y(v) }));
        if (v !== 0.25 && v !== 0.75) parts.push(svg("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, `${100 * v} %`));
      }
      for (const [step, name] of [[begun, "began"], [sure, "confirmed"]]) {
        if (step === null || step < from || step > to || (name === "began" && sure !== null && Math.abs(x(sure) - x(step)) < 90)) continue;
        parts.push(svg("line", { class: "halo", x1: x(step), x2: x(step), y1: TOP - 3, y2: y(0) }), svg("line", { class: "at", x1: x(step), x2: x(step), y1: TOP - 3, y2: y(0), "stroke-dasharray": name === "began" ? "4 3" : null }),
          svg("text", { x: x(step), y: TOP - 6, "text-anchor": "middle" }, `${name} ${step}`));
      }
      parts.push(...named(rows, places, x, y), ...stepAxis(wide, HEIGHT - BOTTOM));
      rule = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
      holder.replaceChildren(svg("svg", { width: wide, height: HEIGHT }, ...parts, rule));
    });
    cursors.push((step) => {
      const i = step === null ? null : nearest(steps, step);
      outputs.forEach((output, k) => { output.textContent = i === null ? "" : share(rows[k].values[i]); });
      place(rule, step, width);
    });
    hoverable(holder, () => width);
    steerable(holder, steps, "Shares", () => rows.map((row, k) => `${line(row.mode, 40)} ${outputs[k].textContent}`).join(", "));
    lazyTable($("shares").querySelector("details"), () => table($("shares-table"), ["step", ...rows.map((row) => line(row.mode, 40))],
      evenly(steps.length).map((i) => ({ cells: [count(steps[i]), ...rows.map((row) => share(row.values[i]))] })), new Set([0, ...rows.map((_, k) => k + 1)])));
  }

  // ---- curves
  const COLOURS = ["--accent", "--c2", "--c3"], ALARMS = { fail: "--bad", warn: "--warn", note: "--accent" };
  function chartCard(chart, place = "") {
    const lines = chart.lines.map((one) => ({ ...one, steps: undelta(one.steps) }));
    const checks = chart.checks.map((index) => ({ ...data.checks[index], index })).filter((check) => check.status !== "skip");
    const title = line(chart.title, 80), unit = line(chart.unit, 60);
    const shown = el("p", { class: "now" }), plot = el("div", { class: "plot", role: "img", tabindex: "0" });
    const worst = checks.find((check) => check.status !== "pass");
    plot.setAttribute("aria-label", `${title}${unit ? ` (${unit})` : ""} over steps. ` + lines.map((one) => {
      const known = one.values.filter((v) => v !== null);
      return `${lines.length > 1 ? `${one.label}: ` : ""}from ${number(known[0])} to ${number(known.at(-1))}, least ${number(known.reduce((a, b) => Math.min(a, b)))}, greatest ${number(known.reduce((a, b) => Math.max(a, b)))}`;
    }).join("; ") + ".");
    const legend = el("ul", { class: "legend" }, unit ? el("li", { class: "unit" }, unit) : "");
    if (lines.length > 1) lines.forEach((one, i) => legend.append(el("li", {}, swatch(`var(${COLOURS[i % 3]})`), one.label)));
    const heads = lines.map((one) => (lines.length > 1 ? one.label : title));
    const details = el("details", {}, el("summary", {}, "Numbers"));
    const card = el("figure", { class: "chart" }, el("figcaption", {}, el("h3", {}, title, worst ? el("a", { class: `badge ${worst.status}`, href: `#${anchor(worst)}` }, word(worst.status)) : ""), shown), legend, plot, el("div", { class: "below" }, details, savers(title, () => plot.querySelector("canvas"), () => linesTable(heads, lines))));
    lazyTable(details, () => details.append(numbersTable(title + place, heads, lines)));
    const say = (step) => lines.map((one) => `${lines.length > 1 ? `${one.label} ` : ""}${number(valueAt(one, step))}`).join(" · ");
    const rest = () => {
      // One number for one thing: what the check says of the end, where there is one.
      const last = lines.map((one) => (checks.find((check) => check.metric === one.name && typeof check.value === "number") || { value: one.values.findLast((v) => v !== null) }).value);
      shown.replaceChildren("now ", el("b", {}, last.map(number).join(" · ")));
    };
    rest();
    const now = (step) => { if (step === null) rest(); else shown.replaceChildren(`step ${count(step)} `, el("b", {}, say(step))); };
    const series = () => lines.map((one, i) => {
      const stroke = css(COLOURS[i % 3]);
      return { stroke, width: 1.7, spanGaps: false, points: { show: one.values.filter((v) => v !== null).length < 40, size: 5, fill: stroke } };
    });
    const bad = checks.filter((check) => check.status !== "pass"), own = checks.filter((check) => Object.hasOwn(ALARMS, check.status));
    const calm = bad.length && bad.every((check) => check.status === "note");
    const thresholds = (bad.length ? bad : checks).map((check) => check.threshold).filter((v) => typeof v === "number");
    const judged = (worst && lines.find((one) => one.name === worst.metric)) || lines[0];
    // The base, the lines not to be passed, and when they were.
    const mark = (u) => {
      const c = u.ctx, px = devicePixelRatio || 1, { left, top, width, height } = u.bbox, dim = css("--dim");
      c.save();
      c.beginPath(); c.rect(left, top, width, height); c.clip();
      const level = (at, colour, dash) => {
        const y = u.valToPos(at, "y", true);
        c.strokeStyle = colour; c.lineWidth = px; c.setLineDash(dash.map((v) => v * px));
        c.beginPath(); c.moveTo(left, y); c.lineTo(left + width, y); c.stroke();
      };
      if (typeof judged.base === "number") level(judged.base, dim, [4, 4]);
      thresholds.forEach((at) => level(at, css(calm ? "--dim" : "--bad"), [2, 3]));
      const upright = (step, colour, dash, alpha) => {
        const x = u.valToPos(step, "x", true);
        c.globalAlpha = alpha; c.strokeStyle = colour; c.lineWidth = 1.5 * px; c.setLineDash(dash.map((v) => v * px));
        c.beginPath(); c.moveTo(x, top); c.lineTo(x, top + height); c.stroke(); c.globalAlpha = 1;
      };
      if (isFinite(firstAlarm) && !own.length) upright(firstAlarm, dim, [], 0.35);
      for (const check of own) {
        const colour = css(ALARMS[check.status]);
        if (check.first_step !== null) upright(check.first_step, colour, [4, 3], 0.9);
        if (check.alarm_step !== null) upright(check.alarm_step, colour, [], 0.9);
      }
      c.restore();
    };
    const joined = uPlot.join(lines.map((one) => [one.steps, one.values]), lines.map(() => [2]));
    const start = curve(plot, chart, joined, series, mark, now);
    steerable(plot, joined[0], title, () => say(view.step));
    return [card, start];
  }
  if (data.steps && (data.charts.length || data.further.length)) {
    show("curves");
    for (const [dash, colour, name] of [["3 2", "--dim", "base"], ["2 2", "--bad", "line"]])
      $("curves-legend").append(el("li", {}, svg("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, svg("line", { x1: 0, x2: 14, y1: 6, y2: 6, "stroke-width": 1.6, "stroke-dasharray": dash, style: `stroke:var(${colour})` })), name));
    for (const [dash, name] of [["3 2", "began"], [null, "confirmed"]])
      $("curves-legend").append(el("li", {}, svg("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, svg("line", { x1: 6, x2: 6, y1: -1, y2: 13, "stroke-width": 2, "stroke-dasharray": dash, style: "stroke:var(--bad)" })), name));
    mountCurves(chartCard);
    for (const [holder, chart] of pictures) {
      const [card, start] = chartCard(chart, ", of what happened");
      holder.append(card);
      start();
    }
    if (data.never.length) $("never").textContent = `Never measured in this run: ${data.never.map((name) => line(name, 80)).join(", ")}.`;
    lazyTable($("metrics-table").closest("details"), () => table($("metrics-table"), ["metric", "unit", "base", "first", "last", "min", "max"],
      data.summary.map(([name, unit, ...values]) => ({ cells: [line(name, 100), line(unit, 40), ...values.map(number)] })), new Set([2, 3, 4, 5, 6])));
    const [FIRST, LAST] = data.steps;
    const range = (low, high) => {
      view.from = low;
      view.to = Math.max(high, low + 1);
      $("range-from").value = view.from;
      $("range-to").value = Math.min(LAST, view.to);
      point(null);
      page.redraw();
    };
    for (const id of ["range-from", "range-to"]) { $(id).min = FIRST; $(id).max = LAST; }
    $("range-from").value = FIRST;
    $("range-to").value = LAST;
    $("range").addEventListener("submit", (event) => {
      event.preventDefault();
      const ends = [$("range-from"), $("range-to")].map((input, i) => (input.value === "" ? [FIRST, LAST][i] : Math.min(LAST, Math.max(FIRST, Math.round(Number(input.value))))));
      range(Math.min(...ends), Math.max(...ends));
    });
    $("range-all").addEventListener("click", () => range(FIRST, LAST));
  }

  // ---- modes
  const colourOf = new Map((data.shares ? data.shares.rows : []).map((row) => [row.mode, row.colour]));
  const inColour = (mode) => (colourOf.has(mode) ? el("span", { class: "key" }, swatch(colourOf.get(mode))) : "");
  const FATES = { gone: "fail", "nearly gone": "fail", fewer: "warn" };
  const fateBadge = (fate) => el("span", { class: `badge ${Object.hasOwn(FATES, fate) ? FATES[fate] : ""}` }, fate);
  if (data.modes.length) {
    show("modes");
    table($("modes-table"), ["format", "now", "share, base", "share, end", "reward, base", "reward, end", "last seen at step"],
      data.modes.map((story) => ({ cells: [el("span", {}, inColour(story.mode), line(story.mode, 60)), fateBadge(story.became), shareBar(story.base_share), shareBar(story.last_share), number(story.base_reward), number(story.last_reward), story.last_seen_step === null ? "–" : count(story.last_seen_step)] })), new Set([4, 5, 6]));
    for (const story of data.modes.filter((one) => one.fate === "extinct" || one.fate === "shrunk" || one.fate === "newborn")) {
      if (!story.examples.length) continue;
      $("modes-cards").append(el("article", { class: "mode" },
        el("div", { class: "mode-head" }, el("h3", {}, inColour(story.mode), line(story.mode, 60)), fateBadge(story.became), el("p", {}, `${share(story.base_share)} of completions at the base, ${share(story.last_share)} at the end`)),
        el("div", { class: "side" }, ...story.examples.map((example) => exampleCard(example)))));
    }
  }

  // ---- prompts over time
  let filterPrompt = () => {};
  if (data.heat) {
    show("heat");
    const { bins, rows } = data.heat, canvas = $("heat-canvas"), ROW = 16, AXIS = 18, FONT = "11.5px system-ui,sans-serif";
    $("heat-note").textContent = `Share of rewarded completions of each prompt over time; one row a prompt, ${plural(rows.length, "row", "rows")} of ${plural(data.heat.prompts, "prompt", "prompts")} seen at least twice. ${data.heat.note ? `${line(data.heat.note, 400)} ` : ""}Above: the first step of a column. A click, or Enter, shows a prompt's completions below.`;
    const fates = [...new Set(rows.map((row) => row.fate))];
    $("heat-fate").append(el("option", { value: "-1" }, `all ${rows.length}`), ...fates.map((fate, i) => el("option", { value: i }, `${line(fate, 30)} (${rows.filter((row) => row.fate === fate).length})`)));
    for (const [name, words] of [["--heat-low", "never right"], ["--heat-mid", "half"], ["--heat-high", "always right"], ["--heat-none", "not sampled"]])
      $("heat-legend").append(el("li", {}, swatch(`var(${name})`), words));
    let shown = rows, at = null;
    const channel = (colour) => colour.match(/[\d.]+/g).slice(0, 3).map(Number);
    const geometry = () => {
      const width = canvas.parentElement.clientWidth - 14, c = canvas.getContext("2d");
      c.font = FONT;
      const widest = Math.max(40, ...rows.map((row) => c.measureText(words(row)).width));
      const label = Math.min(widest + 14, width * 0.3, 280);
      return { width, label, cell: (width - label) / bins.length };
    };
    const words = (row) => line(row.prompt === null ? row.prompt_id : row.prompt, 120);
    function draw() {
      const { width, label, cell } = geometry(), px = devicePixelRatio || 1, height = shown.length * ROW + AXIS + 2;
      canvas.width = width * px; canvas.height = height * px;
      canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
      const c = canvas.getContext("2d");
      c.scale(px, px);
      c.clearRect(0, 0, width, height);
      const [low, mid, high] = ["--heat-low", "--heat-mid", "--heat-high"].map((name) => channel(css(name))), none = css("--heat-none");
      const mix = (a, b, t) => `rgb(${a.map((v, i) => Math.round(v + (b[i] - v) * t)).join(",")})`;
      c.font = FONT; c.textBaseline = "middle"; c.fillStyle = css("--dim");
      let busy = -1;
      bins.forEach(([first], b) => {
        const at = label + b * cell, wide = c.measureText(count(first)).width;
        if (at < busy || at + wide > width) return;
        c.fillText(count(first), at, AXIS / 2 - 1);
        busy = at + wide + 34;
      });
      shown.forEach((row, r) => {
        c.fillStyle = css("--dim");
        c.save(); c.beginPath(); c.rect(0, AXIS + r * ROW, label - 8, ROW); c.clip();
        c.fillText(words(row), 0, AXIS + r * ROW + ROW / 2); c.restore();
        row.rates.forEach((rate, b) => {
          c.fillStyle = rate === null ? none : rate < 0.5 ? mix(low, mid, 2 * rate) : mix(mid, high, 2 * rate - 1);
          c.fillRect(label + b * cell, AXIS + r * ROW + 1, Math.max(1, cell - 1), ROW - 2);
        });
      });
      if (at) { c.strokeStyle = css("--ink"); c.lineWidth = 2; c.strokeRect(label + at[1] * cell, AXIS + at[0] * ROW + 1, Math.max(2, cell - 1), ROW - 2); }
    }
    const label = () => canvas.setAttribute("aria-label", `Solve rates of ${plural(shown.length, "prompt", "prompts")} in ${plural(bins.length, "bin", "bins")} of steps. Arrow keys move over the cells. Numbers in the table below.`);
    function read() {
      if (!at || !shown[at[0]]) { $("heat-readout").textContent = ""; return; }
      const row = shown[at[0]], rate = row.rates[at[1]], [first, last] = bins[at[1]];
      $("heat-readout").textContent = `${words(row)}: ${rate === null ? "not sampled" : share(rate)} in steps ${first} to ${last}; ${line(row.fate, 30)}, ${plural(row.attempts, "attempt", "attempts")} in all, source ${line(row.source, 60)}`;
    }
    const move = (next) => { at = next; draw(); read(); };
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect(), { label: left, cell } = geometry();
      const next = [Math.floor((event.clientY - box.top - AXIS) / ROW), Math.min(bins.length - 1, Math.floor((event.clientX - box.left - left) / cell))];
      if (next[0] >= shown.length || next[0] < 0) return;
      next[1] = Math.max(0, next[1]);
      if (!at || at[0] !== next[0] || at[1] !== next[1]) move(next);
    });
    const go = () => { if (at && shown[at[0]]) filterPrompt(shown[at[0]].prompt_id); };
    canvas.addEventListener("click", go);
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Enter") { go(); return; }
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!step || !shown.length) return;
      event.preventDefault();
      const [r, b] = at || [0, 0];
      move([Math.min(shown.length - 1, Math.max(0, r + (at ? step[0] : 0))), Math.min(bins.length - 1, Math.max(0, b + (at ? step[1] : 0)))]);
      const holder = $("heat-scroll"), y = at[0] * ROW && AXIS + at[0] * ROW;
      if (y < holder.scrollTop) holder.scrollTop = y;
      else if (y + 2 * ROW > holder.scrollTop + holder.clientHeight) holder.scrollTop = y + 2 * ROW - holder.clientHeight;
    });
    $("heat-fate").addEventListener("change", (event) => {
      const fate = Number(event.target.value);
      shown = fate < 0 ? rows : rows.filter((row) => row.fate === fates[fate]);
      at = null; label(); draw(); read();
    });
    $("heat-legend").after(savers("Prompts over time", () => canvas, () => [["prompt", "became", "source", "attempts", ...bins.map(([first, last]) => `steps ${first} to ${last}`)], ...rows.map((row) => [words(row), row.fate, row.source, row.attempts, ...row.rates])]));
    label();
    drawings.push(draw);
    new ResizeObserver(draw).observe($("heat-scroll"));
    lazyTable($("heat-table").closest("details"), () => table($("heat-table"), ["prompt", "fate", "source", "attempts", ...bins.map(([first, last]) => (first === last ? count(first) : `${first}–${last}`))],
      rows.map((row) => ({ cells: [words(row), line(row.fate, 30), line(row.source, 60), count(row.attempts), ...row.rates.map((rate) => (rate === null ? "–" : number(rate)))] })), new Set([3, ...bins.map((_, b) => b + 4)])));
  }

  // ---- samples
  if (data.samples.length) {
    show("samples");
    const samples = data.samples, unique = (key) => [...new Set(samples.map((sample) => sample[key]))].sort((a, b) => (String(a) < String(b) ? -1 : 1));
    const fields = {}, form = $("filters");
    const choose = (key, title, values = unique(key)) => {
      fields[key] = { input: el("select", { name: key }, el("option", { value: "" }, "all"), ...values.map((one, i) => el("option", { value: i }, line(one, 60)))), values };
      form.append(el("label", {}, title, fields[key].input));
    };
    const between = (key, title, step) => {
      fields[key] = ["from", "to"].map((side) => el("input", { type: "number", step, name: `${key}-${side}`, placeholder: side, "aria-label": `${title} ${side}` }));
      form.append(el("fieldset", {}, el("legend", {}, title), el("span", { class: "pairbox" }, ...fields[key])));
    };
    const type = (key, title) => {
      fields[key] = el("input", { type: "search", name: key, autocomplete: "off", spellcheck: "false" });
      form.append(el("label", { class: "wider" }, title, fields[key]));
    };
    type("text", "Completion holds");
    type("prompt", "Prompt or its id holds");
    between("step", "Steps", "1");
    between("reward", "Reward", "any");
    choose("mode", "Format");
    choose("split", "Split");
    choose("source", "Source");
    fields.order = el("select", { name: "order" }, ...["step", "reward, lowest first", "reward, highest first"].map((one, i) => el("option", { value: i }, one)));
    form.append(el("label", {}, "Order", fields.order), el("button", { type: "reset", class: "quiet" }, "Clear filters"));
    let at = 0;
    const textOf = (index) => (index === null ? "" : data.texts[index][0] + data.texts[index][2]);
    const inside = (v, [low, high]) => (low.value === "" && high.value === "") || (typeof v === "number" && (low.value === "" || v >= Number(low.value)) && (high.value === "" || v <= Number(high.value)));
    const chosen = () => {
      const want = fields.text.value.toLowerCase(), prompt = fields.prompt.value.toLowerCase();
      const found = samples.filter((sample) => inside(sample.step, fields.step) && inside(sample.reward, fields.reward) &&
        ["mode", "split", "source"].every((key) => fields[key].input.value === "" || fields[key].values[Number(fields[key].input.value)] === sample[key]) &&
        (!want || textOf(sample.completion).toLowerCase().includes(want)) &&
        (!prompt || textOf(sample.prompt).toLowerCase().includes(prompt) || sample.prompt_id.toLowerCase().includes(prompt)));
      const low = (sample, missing) => (typeof sample.reward === "number" ? sample.reward : missing);
      if (fields.order.value === "1") found.sort((a, b) => low(a, Infinity) - low(b, Infinity) || a.step - b.step);
      else if (fields.order.value === "2") found.sort((a, b) => low(b, -Infinity) - low(a, -Infinity) || a.step - b.step);
      else found.sort((a, b) => a.step - b.step);
      return found;
    };
    const render = () => {
      const found = chosen(), pages = Math.max(1, Math.ceil(found.length / SAMPLES_PER_PAGE));
      at = Math.min(pages - 1, Math.max(0, at));
      const here = found.slice(at * SAMPLES_PER_PAGE, (at + 1) * SAMPLES_PER_PAGE);
      $("samples-list").replaceChildren(...here.map((sample) => el("article", { class: "sample" }, exampleCard(sample, { promptSearch: fields.prompt.value, textSearch: fields.text.value, full: true }))));
      $("samples-count").textContent = found.length ? `${at * SAMPLES_PER_PAGE + 1} to ${at * SAMPLES_PER_PAGE + here.length} of ${found.length} completions${found.length < samples.length ? `, filtered from ${samples.length}` : ""}` : `None of ${samples.length} completions fits; clear a filter.`;
      $("previous").disabled = at === 0;
      $("next").disabled = at >= pages - 1;
    };
    form.addEventListener("input", () => { at = 0; render(); });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(() => { at = 0; render(); }));
    $("previous").addEventListener("click", () => { at--; render(); });
    $("next").addEventListener("click", () => { at++; render(); });
    filterPrompt = (id) => {
      form.reset();
      fields.prompt.value = id;
      at = 0;
      render();
      $("samples").scrollIntoView();
      fields.prompt.focus({ preventScroll: true });
    };
    render();
    if (data.text_cut < 4000) $("samples").append(el("p", { class: "dim small" }, `To keep this file small, texts are cut to ${count(data.text_cut)} characters.`));
  }

  // ---- how it was judged
  $("correction").textContent = line(data.correction, 2000);
  pairs($("baseline"), run.baseline);
  pairs($("coverage"), run.coverage);
  pairs($("timing"), data.timing);
  const records = (id, title, items, total) => {
    if (!items.length) return;
    show(id);
    $(`${id}-summary`).textContent = `${title} (${count(total)}${total > items.length ? `, the first ${items.length} shown` : ""})`;
    const heads = [...new Set(items.flatMap((item) => item.map(([key]) => key)))].filter((key) => key !== "finding_id").slice(0, 16);
    lazyTable($(id), () => table($(`${id}-table`), heads.map(words), items.map((item) => ({ cells: heads.map((key) => facts(find(item, key))) }))));
  };
  records("findings", "What the detectors said, step by step", data.findings, data.findings_total);
  if (run.config.length) { show("config"); pairs($("config-pairs"), run.config); }

  // ---- sections, colours, printing
  page.navigate([["happened", data.incidents.length ? "What happened" : "Answer formats"], ["checks", "Checks"], ["story", "When"], ["acts", "Policy"], ["curves", "Curves"], ["modes", "Formats one by one"], ["heat", "Prompts"], ["samples", "Completions"], ["details", "How it was judged"]]);
  page.themes();
  page.permalinks(() => ["shares", "timeline", "charts"].map($).find((one) => one.clientHeight));
  const opened = [];
  addEventListener("beforeprint", () => document.querySelectorAll(".check details:not([open]), .mode details:not([open])").forEach((one) => { one.open = true; opened.push(one); }));
  addEventListener("afterprint", () => opened.splice(0).forEach((one) => { one.open = false; }));
})();
