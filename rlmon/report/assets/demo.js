"use strict";
// Every string from a run reaches the page through textContent (el in page.js); nothing here writes markup.
(() => {
  const { $, el, table, fixed, css, axisStyle, swatch, show } = page;
  const { demo, series, order } = page.data;
  const SMOOTH = 5;
  const nameOf = (run) => `${run.arm}-seed${run.seed}`;
  const armWords = { base: "the base", unprotected: "unprotected", kl: "with KL", protect: "with protect" };
  const words = (arm) => armWords[arm] || arm;
  const stepOf = (value) => (value === null || value === undefined ? "never" : String(value));
  const collapse = new Set(["format-collapse", "entropy-collapse"]);

  const trailing = (values) =>
    values.map((value, i) => {
      if (value === null) return null;
      const window = values.slice(Math.max(0, i - SMOOTH + 1), i + 1).filter((v) => v !== null);
      return window.reduce((a, b) => a + b, 0) / window.length;
    });

  // ---- headline, tiles, claims
  const of = (arm) => demo.runs.filter((run) => run.arm === arm);
  const range = (runs, key, digits = 2) => {
    const values = runs.map((run) => run[key]).filter((v) => v !== null);
    if (!values.length) return "–";
    const low = fixed(Math.min(...values), digits), high = fixed(Math.max(...values), digits);
    return low === high ? low : `${low} – ${high}`;
  };
  const lost = of("unprotected"), kept = of("kl"), guarded = of("protect"), base = demo.base;
  const percent = (value) => (value === null || value === undefined ? "–" : `${Math.round(100 * value)} %`);
  const percents = (values) => {
    const known = values.filter((v) => v !== null && v !== undefined).map((v) => Math.round(100 * v));
    if (!known.length) return "–";
    const low = Math.min(...known), high = Math.max(...known);
    return low === high ? `${low} %` : `${low} – ${high} %`;
  };
  const winners = [...new Set(lost.map((run) => run.top_format))];
  if (lost.length && lost.every((run) => run.top_share > 0.9))
    $("headline").textContent = `Six answer formats became one. No reward asked for it.`;
  $("lead").textContent =
    `The same tiny base model, trained with the same GRPO on the same arithmetic questions, ${demo.seeds.length} ` +
    `seed${demo.seeds.length > 1 ? "s" : ""} per arm. ` +
    (lost.length
      ? `Unprotected, ${winners.join(" or ")} ends with ${percents(lost.map((run) => run.top_share))} of all completions. ` : "") +
    (kept.length
      ? `With a KL penalty (beta ${demo.arms.kl.beta}) accuracy still rises and ${range(kept, "effective_formats", 1)} ` +
        `formats stay in use (base: ${fixed(base.effective_formats, 1)}). ` : "") +
    (guarded.length
      ? `With the policy ${demo.arms.protect.policy}, ${range(guarded, "effective_formats", 1)} stay in use ` +
        `(${percents(guarded.map((run) => run.kept.correct))} of the base’s among correct answers), at accuracy ${range(guarded, "accuracy", 3)}` +
        `${lost.length ? ` against ${range(lost, "accuracy", 3)} unprotected` : ""}.` : "");
  if (guarded.length) show("how");

  const decided = demo.claims.filter((claim) => claim.holds !== null);
  const broken = decided.filter((claim) => !claim.holds);
  $("verdict").textContent = broken.length
    ? `${broken.length} of ${decided.length} claims ${broken.length === 1 ? "does" : "do"} not hold` : `all ${decided.length} claims hold`;
  if (broken.length) $("verdict").classList.add("bad");

  const tile = (kind, title, big, ...lines) =>
    $("tiles").append(el("div", { class: `tile ${kind}` }, el("h3", {}, title), el("div", { class: "big" }, big), lines.map((line) => el("p", {}, line))));
  tile("", "base", fixed(base.effective_formats, 2), "formats in use", `accuracy ${fixed(base.accuracy)}`);
  if (lost.length)
    tile("unprotected", "unprotected, after", range(lost, "effective_formats"), "formats in use", `accuracy ${range(lost, "accuracy", 3)}`);
  if (kept.length)
    tile("kl", "with KL, after", range(kept, "effective_formats"), "formats in use", `accuracy ${range(kept, "accuracy", 3)}`);
  if (guarded.length)
    tile("protect", "with protect, after", range(guarded, "effective_formats"), "formats in use", `accuracy ${range(guarded, "accuracy", 3)}`);
  const leads = lost.filter((r) => r.first_fail_step !== null && r.top_share_over_0_9_step !== null)
    .map((r) => r.top_share_over_0_9_step - r.first_fail_step);
  if (leads.length) {
    const low = Math.min(...leads), high = Math.max(...leads);
    tile("unprotected", "FAIL came", low === high ? `${low} steps` : `${low} – ${high} steps`, "before one format passed 90 %");
  }

  const ids = [...new Map(demo.claims.map((claim) => [`${claim.arm} ${claim.id}`, claim])).values()];
  table($("claims"), ["claim", "arm", ...demo.seeds.map((seed) => `seed ${seed}`)],
    ids.map((first) => ({
      cells: [first.text, words(first.arm), ...demo.seeds.map((seed) => {
        const claim = demo.claims.find((c) => c.arm === first.arm && c.id === first.id && c.seed === seed);
        if (!claim) return "–";
        const [kind, text] = claim.holds === null ? ["skips", "skip"] : claim.holds ? ["holds", "✓ holds"] : ["breaks", "✗ does not hold"];
        return el("span", {}, el("span", { class: `word ${kind}` }, text), el("span", { class: "shown" }, claim.shown));
      })],
    })));

  // ---- numbers behind the stacked shares
  const everyFifth = (steps) => steps.map((step, i) => [step, i]).filter(([step]) => step % 5 === 0);
  table($("shares-table"), ["run", "step", ...order],
    demo.runs.flatMap((run) => {
      const s = series[nameOf(run)];
      const smooth = Object.fromEntries(order.map((mode) => [mode, trailing(s.shares[mode] || s.steps.map(() => 0))]));
      return everyFifth(s.steps).map(([step, i]) => ({ cells: [nameOf(run), step, ...order.map((mode) => fixed(smooth[mode][i], 2))] }));
    }), new Set(order.map((_, i) => i + 2).concat(1)));

  // ---- what was kept, and what was done for it
  const knobWords = { advantages: "groups taken out", draws: "prompts put off", quarantine: "quarantine", deferral: "deferral" };
  const knob = (name) => knobWords[name] || name;
  const counted = (counts) => Object.entries(counts).map(([name, n]) => `${name.replaceAll("_", " ")} ${n}`).join(", ");
  table($("kept"), ["run", "formats", "among correct", "within prompts", "correct, within", "price", "what was done (effects)"],
    demo.runs.map((run) => {
      const k = run.kept, acted = run.acted;
      const done = acted && Object.entries(acted.applied).map(([name, n]) =>
        el("span", { class: "line" }, `${knob(name)}: ${n}`, el("span", { class: "tag" }, acted.effects[name] ? ` (${counted(acted.effects[name])})` : "")));
      const ends = acted && [["kappa", acted.last_kappa], ["beta", acted.last_beta]].filter(([, v]) => v !== null)
        .map(([name, v]) => `${name} ends ${fixed(v, 2)}`).join(", ");
      return { cells: [`${words(run.arm)}, seed ${run.seed}`, ...["across", "correct", "within", "correct_within"].map((name) => percent(k[name])),
        k.price === null ? "–" : run.arm === "unprotected" ? "" : `${fixed(100 * k.price, 1)} points`,
        acted ? [done.length ? done : "nothing", el("span", { class: "shown" }, ends), acted.failed ? el("span", { class: "word breaks" }, `${acted.failed} failed`) : null] : "–"] };
    }), new Set([1, 2, 3, 4, 5]));
  const acts = demo.runs.flatMap((run) => (run.acted ? run.acted.actions.map((a) => ({ run, a })) : []));
  const level = (value) => (value === null ? "–" : typeof value === "number" ? String(Number(value.toPrecision(3))) : value);
  if (acts.length) {
    show("actions-details");
    table($("actions"), ["run", "step", "what", "from", "to", "why", "effect"], acts.map(({ run, a }) => ({
      cells: [`${words(run.arm)}, seed ${run.seed}`, a.step, knob(a.knob), level(a.old), level(a.new), a.reason,
        el("span", {}, el("span", { class: `word ${a.failed || a.effect === "harmed" ? "breaks" : a.effect === "helped" ? "holds" : "skips"}` },
          a.failed ? "failed" : String(a.effect || "–").replaceAll("_", " ")), el("span", { class: "shown" }, a.effect_reason || ""))],
    })), new Set([1, 3, 4]));
  }

  // ---- the second act
  const wanted = [...new Set(demo.second_act.map((act) => act.wanted.toUpperCase()))].join(", ");
  $("act-lead").textContent =
    `Now an answer is rewarded only where it is right and written as ${wanted}. Training goes on from the base and from each end, with beta 0 and no policy.`;
  [...new Set(demo.second_act.map((act) => act.arm))].forEach((arm) => {
    $("act-legend").append(el("li", {}, swatch(`var(--arm-${CSS.escape(arm)}, var(--dim))`), words(arm)));
  });
  table($("acts"), ["start", `${wanted} in 4,096 samples`, "learned at step", "groups to learn from", "weights moved"],
    demo.second_act.map((act) => ({
      cells: [`${words(act.arm)}, seed ${act.seed}`, act.wanted_in_4096,
        el("span", { class: act.steps_to_90 === null ? "word breaks" : "" }, act.steps_to_90 === null ? `not in ${act.rewards.length} steps` : String(act.steps_to_90)),
        act.mixed_groups, `${fixed(100 * act.weights_moved, 1)} %`],
    })), new Set([1, 2, 3, 4]));

  // ---- curves
  const CHARTS = [
    ["effective", "Formats in use", "exp of the entropy of format shares", "effective_formats", 2, [1, null]],
    ["top_share", "Largest format's share", "", "top_share", 2, [0, 1]],
    ["entropy", "Token entropy", "nats", "entropy_nats", 3, [0, null]],
    ["kl", "KL to the base", "nats per token, exact", "kl_nats", 3, [0, null]],
    ["reward", "Reward", "share of correct completions in training", "accuracy", 3, [null, 1]],
    ["within", "Formats in use within one prompt", "1 / chance that two completions agree", "effective_formats_within", 2, [1, null]],
  ];
  const smoothed = {};
  for (const run of demo.runs) {
    const s = series[nameOf(run)];
    smoothed[nameOf(run)] = Object.fromEntries(
      CHARTS.map(([key]) => [key, key === "kl" ? s.curves.kl : trailing(s.curves[key])]));
  }
  const steps = [...new Set(demo.runs.flatMap((run) => series[nameOf(run)].steps))].sort((a, b) => a - b);
  const aligned = (run, key) => {
    const at = new Map(series[nameOf(run)].steps.map((step, i) => [step, smoothed[nameOf(run)][key][i]]));
    return steps.map((step) => at.get(step) ?? null);
  };
  const armColour = (arm) => css(`--arm-${arm}, var(--accent)`);
  let seedsShown = new Set(demo.seeds);
  let plots = [];

  const marksOf = (run) => {
    const first = (severity) => Math.min(...run.findings.filter((f) => collapse.has(f.detector) && f.severity === severity).map((f) => f.step));
    const warn = first("warn"), fail = first("fail");
    return [["warn", warn], ["fail", fail]].filter(([severity, step]) => isFinite(step) && (severity === "fail" || step < fail));
  };
  function alarmPlugin(runs, key) {
    return { hooks: { draw: (u) => {
      const c = u.ctx, px = devicePixelRatio || 1;
      c.save();
      const baseValue = base[CHARTS.find((chart) => chart[0] === key)[3]];
      if (key !== "kl" && baseValue !== null) {
        const y = u.valToPos(baseValue, "y", true);
        if (y >= u.bbox.top && y <= u.bbox.top + u.bbox.height) {
          c.strokeStyle = css("--dim"); c.setLineDash([4 * px, 4 * px]); c.lineWidth = px;
          c.beginPath(); c.moveTo(u.bbox.left, y); c.lineTo(u.bbox.left + u.bbox.width, y); c.stroke(); c.setLineDash([]);
        }
      }
      runs.forEach((run, r) => marksOf(run).forEach(([severity, step]) => {
        const values = u.data[r + 1];
        let i = u.data[0].indexOf(step);
        while (i > 0 && (values[i] === null || values[i] === undefined)) i--;
        if (i < 0 || values[i] === null) return;
        const x = u.valToPos(step, "x", true), y = u.valToPos(values[i], "y", true), w = 6 * px;
        c.beginPath(); c.moveTo(x, y - w); c.lineTo(x + w, y + w * 0.8); c.lineTo(x - w, y + w * 0.8); c.closePath();
        c.lineWidth = 2 * px; c.strokeStyle = css(severity === "fail" ? "--bad" : "--warn");
        c.fillStyle = severity === "fail" ? css("--bad") : css("--panel");
        c.fill(); c.stroke();
      }));
      c.restore();
    } } };
  }
  function drawCharts() {
    plots.forEach((plot) => plot.destroy());
    plots = [];
    $("charts").replaceChildren();
    const runs = demo.runs.filter((run) => seedsShown.has(run.seed));
    const cards = new Map();
    for (const [key, title, unit, , digits] of CHARTS) {
      const holder = el("div");
      const summary = runs.map((run) => {
        const values = aligned(run, key).filter((v) => v !== null);
        return values.length ? `${words(run.arm)} seed ${run.seed}: from ${fixed(values[0], digits)} to ${fixed(values.at(-1), digits)}` : "";
      }).filter(Boolean).join("; ");
      const card = el("div", { class: "chart", tabindex: "0", role: "img", "aria-label": `${title}${unit ? ` (${unit})` : ""} over steps. ${summary}.` },
        el("h3", {}, title, " ", el("small", {}, unit)), holder);
      $("charts").append(card);
      cards.set(key, [card, holder]);
    }
    // Only now: a card has its final width when all cards are there.
    for (const [key, title, , , digits, [low, high]] of CHARTS) {
      const [card, holder] = cards.get(key);
      const style = axisStyle(), axis = { ...style, ticks: style.grid };
      const plot = new uPlot({
        width: Math.max(200, card.clientWidth - 20), height: 210,
        cursor: { sync: { key: "rlmon" }, drag: { x: false, y: false }, points: { size: 6 } },
        scales: { x: { time: false }, y: { range: (_, min, max) => {
          // A scale that starts at a fixed end does not make noise look like a trend.
          const bottom = low ?? (min === null ? 0 : min - 0.05 * (max - min || 1)), top = high ?? (max === null ? 1 : max * 1.08 || 1);
          return [bottom, Math.max(top, bottom + 1e-6)];
        } } },
        axes: [{ ...axis, size: 30 }, { ...axis, size: 46, values: (_, ticks) => ticks.map((v) => +v.toFixed(3)) }],
        series: [{ label: "step" }, ...runs.map((run) => ({
          label: `${words(run.arm)} ${run.seed}`, stroke: armColour(run.arm), width: 1.8, spanGaps: true,
          points: { show: false },
        }))],
        plugins: [alarmPlugin(runs, key)],
        hooks: { setCursor: [(u) => {
          const i = u.cursor.idx;
          if (i === null || i === undefined || u.cursor.left < 0) return;
          if (document.activeElement !== card && !card.matches(":hover")) return;
          $("readout").textContent = `${title}, step ${steps[i]}: ` + runs.map((run, r) => `${words(run.arm)} seed ${run.seed} ${fixed(u.data[r + 1][i], digits)}`).join(" · ");
        }] },
      }, [steps, ...runs.map((run) => aligned(run, key))], holder);
      card.addEventListener("keydown", (event) => {
        const move = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
        if (!move) return;
        event.preventDefault();
        const from = plot.cursor.idx ?? (move > 0 ? -1 : steps.length);
        const i = Math.min(steps.length - 1, Math.max(0, from + move));
        plot.setCursor({ left: plot.valToPos(steps[i], "x"), top: 10 });
      });
      plots.push(plot);
    }
  }
  const arms = Object.keys(demo.arms);
  arms.forEach((arm) => {
    $("arm-legend").append(el("li", {}, swatch(`var(--arm-${CSS.escape(arm)}, var(--accent))`), `${words(arm)} (beta ${demo.arms[arm].beta}${demo.arms[arm].policy ? `, policy ${demo.arms[arm].policy}` : ""})`));
  });
  const choices = demo.seeds.length > 1 ? ["all", ...demo.seeds] : demo.seeds;
  choices.forEach((choice, i) => {
    const input = el("input", { type: "radio", name: "seed", value: choice });
    input.checked = i === 0;
    input.addEventListener("change", () => {
      seedsShown = new Set(choice === "all" ? demo.seeds : [choice]);
      drawCharts();
    });
    $("seeds").append(el("label", {}, input, ` ${choice}`));
  });
  drawCharts();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawCharts(); } });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);

  table($("curves-table"), ["run", "step", ...CHARTS.map((chart) => chart[1])],
    demo.runs.flatMap((run) => everyFifth(series[nameOf(run)].steps).map(([step, i]) => ({
      cells: [nameOf(run), step, ...CHARTS.map(([key, , , , digits]) => fixed(smoothed[nameOf(run)][key][i], digits))],
    }))), new Set(CHARTS.map((_, i) => i + 2).concat(1)));

  // ---- final table
  const COLUMNS = [
    ["accuracy", 3], ["effective_formats", 2], ["effective_formats_within", 2], ["effective_formats_correct", 2],
    ["effective_formats_correct_within", 2], ["other_share", 3],
    ["top_format", null], ["top_share", 3], ["entropy_nats", 3], ["kl_nats", 3], ["kl_seq_nats", 2],
  ];
  const evaluated = (row) => COLUMNS.map(([key, digits]) => (digits === null ? row[key] : fixed(row[key], digits)));
  const numeric = new Set([1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15]);
  table($("final"), ["run", ...COLUMNS.map(([key]) => key.replaceAll("_", " ")), "first WARN", "first FAIL", "top ≥ .9", "CPU s"], [
    { class: "base", cells: ["base", ...evaluated(base), "", "", "", ""] },
    ...demo.runs.map((run) => ({ cells: [`${words(run.arm)}, seed ${run.seed}`, ...evaluated(run), stepOf(run.first_warn_step),
      stepOf(run.first_fail_step), stepOf(run.top_share_over_0_9_step), fixed(run.cpu_seconds, 1)] })),
  ], numeric);
  const e = demo.evaluation;
  $("evaluation").textContent = `${e.completions} completions (${e.prompts} prompts × ${e.samples_per_prompt}) at temperature ${e.temperature}, ` +
    `one seed for all arms. Prompts: ${e.held_out}.`;
  for (const [key, text] of Object.entries(demo.definitions)) $("definitions").append(el("dt", {}, key), el("dd", {}, text));

  // ---- alarms
  const alarms = demo.runs.flatMap((run) => run.findings.map((f) => ({ run, f })));
  table($("alarms"), ["run", "step", "level", "detector", "what was seen", "what to do"],
    alarms.length ? alarms.map(({ run, f }) => ({
      cells: [`${words(run.arm)}, seed ${run.seed}`, f.step, el("span", { class: `word ${["fail", "warn"].includes(f.severity) ? f.severity : "dim"}` }, String(f.severity).toUpperCase()), f.detector, f.message, f.advice],
    })) : [{ cells: ["none", "", "", "", "", ""] }], new Set([1]));

  // ---- samples
  const sampleRuns = demo.runs.filter((run) => run.seed === demo.seeds[0]);
  const shown = (sample) => el("div", {}, el("pre", {}, sample.completion === "" ? "(empty)" : sample.completion),
    el("span", { class: "tag" }, sample.format, " · ", el("span", { class: sample.correct ? "holds" : "breaks" }, sample.correct ? "correct" : "wrong")));
  table($("samples"), ["prompt", "base", ...sampleRuns.map((run) => `${words(run.arm)}, seed ${run.seed}`)],
    base.samples.map((sample, i) => ({
      cells: [el("pre", {}, String(sample.prompt).trim()), shown(sample), ...sampleRuns.map((run) => (run.samples[i] ? shown(run.samples[i]) : "–"))],
    })));

  $("provenance").textContent =
    `${demo.tool} · ${new Date(demo.created_unix_seconds * 1000).toISOString()} · ` +
    Object.entries(demo.packages).filter(([, v]) => v).map(([name, version]) => `${name} ${version}`).join(" · ") +
    ` · base ${String(base.weights_sha256).slice(0, 12)} · ${fixed(demo.cpu_seconds, 0)} CPU-seconds in all · ` +
    `monitor ${fixed(demo.runs.reduce((sum, run) => sum + (run.monitor_seconds || 0), 0), 1)} of them`;
})();
