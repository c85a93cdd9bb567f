"use strict";
// Only in a page that is served: asks whether there is a newer one, and takes it without losing the reader's place.
(() => {
  const { data, $, view } = page;
  const EVERY = 2500, SOON = 600, SETTLE_MS = 1200, TYPING_MS = 8000, KEY = `rlmon-place:${location.pathname}`;
  const waiting = data.waiting === true, [FIRST, LAST] = data.steps || [0, 1];
  let paused = false, failed = false, version = data.served.version, touched = -Infinity;

  // ---- names of elements that hold from one page to the next: an id, or the place inside of what has one
  const nameOf = (node) => {
    const holder = node.id ? node : node.parentElement.closest("[id]") || document.body;
    return holder === node ? [node.id] : [holder.id, node.tagName, [...holder.querySelectorAll(node.tagName)].indexOf(node)];
  };
  const found = ([id, tag, at]) => {
    const holder = id ? $(id) : document.body;
    return holder && tag ? holder.querySelectorAll(tag)[at] : holder;
  };
  const all = (selector) => [...document.querySelectorAll(selector)];

  // ---- the reader's place
  function anchor() {
    if (scrollY < 8) return null;
    const above = all("main [id]").filter((node) => node.getClientRects().length && node.getBoundingClientRect().top <= 90).pop();
    return above ? [nameOf(above), above.getBoundingClientRect().top] : [[""], document.body.getBoundingClientRect().top];
  }
  function keep() {
    const fields = all("#filters [name], #heat-fate").map((field) => [nameOf(field), field.tagName === "SELECT" ? field.selectedOptions[0]?.textContent : field.value]);
    const range = $("range-from") && (view.from !== FIRST || view.to < LAST) ? [view.from, view.to >= LAST ? null : view.to] : null;
    return {
      anchor: anchor(),
      open: all("details").map((one) => [nameOf(one), one.open]),
      more: all('.more[aria-expanded="true"]').map(nameOf),
      scrolled: all(".scroll, .heat-scroll").filter((one) => one.scrollTop || one.scrollLeft).map((one) => [nameOf(one), one.scrollTop, one.scrollLeft]),
      focus: document.activeElement && document.activeElement !== document.body ? nameOf(document.activeElement) : null,
      fields, range, paused,
      samples: $("samples-count") ? Number(/^\d+/.exec($("samples-count").textContent)?.[0] || 1) : 1,
    };
  }
  function restore(place) {
    for (const [name, value] of place.fields) {
      const field = found(name);
      if (!field || field.value === value) continue;
      if (field.tagName === "SELECT") field.selectedIndex = Math.max(0, [...field.options].findIndex((one) => one.textContent === value));
      else field.value = value;
      field.dispatchEvent(new Event(field.id === "heat-fate" ? "change" : "input", { bubbles: true }));
    }
    if (place.range) {
      [$("range-from").value, $("range-to").value] = [place.range[0], place.range[1] ?? LAST];
      $("range").requestSubmit();
    }
    for (let at = Number(/^\d+/.exec($("samples-count")?.textContent || "1")?.[0] || 1); at < place.samples && !$("next").disabled; at = Number(/^\d+/.exec($("samples-count").textContent)[0])) $("next").click();
    for (const [name, open] of place.open) { const one = found(name); if (one) one.open = open; }
    for (const name of place.more) { const one = found(name); if (one && one.getAttribute("aria-expanded") === "false") one.click(); }
    const focused = place.focus && found(place.focus);
    if (focused) focused.focus({ preventScroll: true });
    for (const [name, top, left] of place.scrolled) { const one = found(name); if (one) [one.scrollTop, one.scrollLeft] = [top, left]; }
    if (place.anchor === null) return;
    // Figures and tables get their heights one by one: hold on to the place until they have, or the reader moves.
    const until = performance.now() + SETTLE_MS;
    let moved = false;
    for (const kind of ["wheel", "touchstart", "pointerdown", "keydown"]) addEventListener(kind, () => { moved = true; }, { once: true, passive: true });
    const hold = () => {
      if (moved) return;
      const node = found(place.anchor[0]), off = node ? node.getBoundingClientRect().top - place.anchor[1] : 0;
      if (Math.abs(off) > 1) scrollBy({ top: off, behavior: "instant" });
      if (performance.now() < until) requestAnimationFrame(hold);
    };
    hold();
  }
  const remembered = () => {
    try {
      const place = JSON.parse(sessionStorage.getItem(KEY));
      sessionStorage.removeItem(KEY);
      return place;
    } catch { return null; }
  };

  // ---- looking for news
  function ago() {
    const seconds = Math.max(0, Date.now() / 1000 - data.served.changed_unix_seconds);
    if (!data.served.changed_unix_seconds) return "";
    if (seconds < 60) return `changed ${Math.floor(seconds / 5) * 5} s ago`;
    return seconds < 5400 ? `changed ${Math.floor(seconds / 60)} min ago` : seconds < 172800 ? `changed ${Math.floor(seconds / 3600)} h ago` : `changed ${Math.floor(seconds / 86400)} days ago`;
  }
  function say() {
    $("served-said").className = `follow small ${failed ? "off" : paused ? "" : "on"}`;
    $("served-said").textContent = failed ? "server gone: as last seen" : paused ? `paused, ${ago()}` : ago() || "live";
  }
  // Whoever selects text, types or drags is not interrupted: the news waits.
  const busy = () => !getSelection().isCollapsed || performance.now() - touched < TYPING_MS;
  async function look() {
    clearTimeout(look.timer);
    if (paused || document.hidden) return;
    try {
      const answer = await fetch(location.pathname, { method: "HEAD", headers: { "If-None-Match": `"${version}"` } });
      failed = false;
      if (answer.status === 200 && !busy()) {
        try { sessionStorage.setItem(KEY, JSON.stringify(keep())); } catch { /* then the page begins at its top */ }
        history.scrollRestoration = "manual";
        location.reload();
        return;
      }
    } catch { failed = true; }
    say();
    look.timer = setTimeout(look, waiting ? SOON : EVERY);
  }
  document.addEventListener("input", (event) => { if (event.isTrusted) touched = performance.now(); });
  addEventListener("pointermove", (event) => { if (event.buttons) touched = performance.now(); }, { passive: true });
  $("served-pause").addEventListener("click", () => {
    paused = !paused;
    $("served-pause").setAttribute("aria-pressed", String(paused));
    say();
    look();
  });
  document.addEventListener("visibilitychange", look);
  const place = remembered();
  if (place) restore(place);
  history.scrollRestoration = "auto";
  say();
  look.timer = setTimeout(look, waiting ? SOON : EVERY);
})();
