// SPDX-License-Identifier: Apache-2.0 OR MIT
// Shows the results that the page carries. Text of a guest's becomes text nodes only.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = id => document.getElementById(id);
  // What a verdict looks like, the news first.
  const KINDS = {
    fail: ["✗", "fail"], not_run: ["∅", "not run"], fixed: ["★", "fixed"],
    xfail: ["≈", "known failure"], skip: ["–", "skip"], pass: ["✓", "pass"],
  };
  const ORDER = Object.keys(KINDS);
  const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat(Infinity).filter(child => child !== undefined && child !== null && child !== false));
    return node;
  }
  // What is known of a bad end, as titles and lines.
  function evidenceParts(evidence) {
    return [["Tasks", evidence.tasks || []], ["Backtraces", evidence.backtraces || []], ["Held by the device", evidence.holds || []], ["Console", evidence.console],
      ["Registers", evidence.registers ? [evidence.registers] : []], ["QEMU", evidence.qemu], ["Device", evidence.device]].filter(([, lines]) => lines.length);
  }
  const seconds = ms => ms === undefined || ms === null ? "" : ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;
  const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
  const span = times => times.length > 1 ? `${times[0]} to ${times.at(-1)}` : times.join("");
  const mib = frame => (frame / 256).toFixed(frame % 256 ? 1 : 0);

  // A test's row, with what the filters ask for.
  const worst = cells => cells.map(cell => cell.verdict).sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b))[0];
  const rows = data.tests.map((test, at) => {
    const cells = data.cells[at];
    const kinds = cells.map(worst);
    const ran = kinds.filter(Boolean);
    return {
      test, at, cells, kinds,
      group: test.name.split("::")[0],
      differ: new Set(ran).size > 1,
      news: cells.flat().some(cell => cell.differs),
      slowest: Math.max(0, ...cells.flat().map(cell => cell.duration_ms || 0)),
      text: undefined,
    };
  });
  // Made when somebody first searches.
  const textOf = row => row.text ??= [row.test.name, row.test.correct, row.test.source, ...row.cells.flat().flatMap(wordsOf)].join("\n").toLowerCase();
  const wordsOf = cell => [
    cell.reason, cell.reference, cell.expected, ...(cell.notes || []), ...(cell.findings || []).map(found => found.text),
    ...(cell.dmesg || []).map(line => data.lines[line]), ...(cell.earlier || []).flatMap(wordsOf),
  ].filter(word => typeof word === "string");

  const mark = kind => el("span", { class: `v ${kind}` }, `${KINDS[kind][0]} ${KINDS[kind][1]}`);
  const tally = kinds => {
    const counts = {};
    for (const kind of kinds) if (kind) counts[kind] = (counts[kind] || 0) + 1;
    return ORDER.filter(kind => counts[kind]).map(kind => [kind, counts[kind]]);
  };

  // The head.
  const news = rows.filter(row => row.news).length;
  const failures = data.runs.filter(run => run.exit !== 0);
  $("verdict").append(
    el("strong", { class: news || failures.length ? "v fail" : "v pass" },
      news ? `${plural(news, "test")} ${news === 1 ? "differs" : "differ"} from the baseline`
        : failures.length ? `not green: exit code ${failures.map(run => run.exit ?? "none").join(", ")}` : "green"),
    ` · ${plural(rows.length, "test")} on ${plural(data.columns.length, "kernel")} · ${span(data.runs.map(run => run.started).sort())}`);

  // Filters.
  const state = { kinds: new Set(), query: "", differ: false, order: "listed", open: new Set(), at: undefined };
  for (const [kind, count] of tally(rows.flatMap(row => [...new Set(row.kinds)]))) {
    $("filter").append(el("button", {
      type: "button", class: "chip", style: `--of: var(--${kind})`, "aria-pressed": "false", "data-kind": kind,
      title: `Tests with this verdict on some kernel`,
      onclick: event => {
        const chosen = !state.kinds.delete(kind);
        if (chosen) state.kinds.add(kind);
        event.currentTarget.setAttribute("aria-pressed", chosen);
        show();
      },
    }, `${KINDS[kind][0]} ${KINDS[kind][1]} ${count}`));
  }
  $("search").addEventListener("input", event => { state.query = event.target.value.trim().toLowerCase(); show(); });
  $("differing").addEventListener("change", event => { state.differ = event.target.checked; show(); });
  $("differing").closest("label").hidden = data.columns.length < 2;
  $("order").addEventListener("change", event => { state.order = event.target.value; show(); });
  $("fold").addEventListener("click", () => {
    const all = groups(visible());
    state.open = all.every(([name]) => state.open.has(name)) ? new Set() : new Set(all.map(([name]) => name));
    show();
  });
  const visible = () => rows.filter(row =>
    (!state.kinds.size || row.kinds.some(kind => state.kinds.has(kind)))
    && (!state.differ || row.differ)
    && (!state.query || textOf(row).includes(state.query)));
  const groups = of => {
    const all = new Map();
    for (const row of of) all.get(row.group)?.push(row) ?? all.set(row.group, [row]);
    return [...all];
  };

  // The matrix.
  const head = el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Test"),
    data.columns.map(column => el("th", { scope: "col" }, column.label, el("br"),
      el("small", { class: "faint" }, column.release || "not booted")))));
  function testRow(row, name) {
    return el("tr", { class: `test${row.at === state.at ? " at" : ""}`, "data-at": row.at, onclick: event => { if (!event.target.closest("a")) open(row.at, columnOf(event.target)); } },
      el("th", { scope: "row" }, el("a", { class: "name", href: hash(row.at) }, name)),
      row.cells.map((cells, column) => {
        const kind = row.kinds[column];
        const label = data.columns[column].label;
        if (!kind) return el("td", { "data-label": label, "data-column": column, class: "faint" }, "");
        const cell = cells.find(cell => cell.verdict === kind);
        const more = [cells.length > 1 && ` ×${cells.length}`, cells.some(cell => cell.earlier) && " flaky"];
        return el("td", { class: cell.differs ? kind : undefined, "data-label": label, "data-column": column },
          mark(kind), more, el("small", {}, seconds(cell.duration_ms)));
      }));
  }
  const columnOf = target => { const cell = target.closest("[data-column]"); return cell ? Number(cell.dataset.column) : undefined; };
  function show() {
    const found = visible();
    const filtered = state.kinds.size || state.query || state.differ;
    const bodies = [];
    if (state.order === "slow") {
      found.sort((a, b) => b.slowest - a.slowest);
      bodies.push(el("tbody", {}, found.map(row => testRow(row, row.test.name))));
    } else {
      for (const [name, members] of groups(found)) {
        // What is news, or was asked for, lies open.
        const isOpen = state.open.has(name) || members.some(row => row.news) || (filtered && found.length <= 200);
        const body = el("tbody", {}, el("tr", { class: "group" },
          el("th", { scope: "rowgroup" }, el("button", {
            type: "button", "aria-expanded": String(isOpen),
            onclick: () => { if (!state.open.delete(name)) state.open.add(name); show(); },
          }, name), el("span", { class: "faint" }, `  ${members.length}`)),
          data.columns.map((column, at) => el("td", { "data-label": column.label },
            tally(members.map(row => row.kinds[at])).map(([kind, count]) => [el("span", { class: `v ${kind}`, title: KINDS[kind][1] }, `${KINDS[kind][0]} ${count}`), " "])))));
        if (isOpen) body.append(...members.map(row => testRow(row, row.test.name.slice(name.length + 2))));
        bodies.push(body);
      }
    }
    $("matrix").replaceChildren(head, ...bodies);
    $("shown").textContent = filtered ? `${found.length} of ${rows.length}` : "";
    const all = groups(found);
    $("fold").hidden = state.order === "slow";
    $("fold").textContent = all.length && all.every(([name]) => state.open.has(name)) ? "Close all" : "Open all";
  }

  // One test.
  const hash = (at, column) => `#test=${encodeURIComponent(data.tests[at].name)}${column === undefined ? "" : `&kernel=${encodeURIComponent(data.columns[column].label)}`}`;
  function open(at, column) { location.hash = hash(at, column); }
  function fromHash() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const row = rows.find(row => row.test.name === parts.get("test"));
    if (!row) return close();
    const asked = data.columns.findIndex(column => column.label === parts.get("kernel"));
    const ran = row.kinds.findIndex((kind, at) => kind && row.cells[at].some(cell => cell.differs));
    detail(row, asked >= 0 ? asked : Math.max(ran, row.kinds.findIndex(Boolean), 0));
  }
  const dialog = $("detail");
  function close() {
    if (!dialog.open) return;
    dialog.close();
    closed();
  }
  // By the browser's own key, too.
  dialog.addEventListener("close", closed);
  function closed() {
    if (location.hash.startsWith("#test=")) history.replaceState(null, "", "#tests");
    document.querySelector("#matrix tr.at a")?.focus({ preventScroll: true });
  }
  dialog.addEventListener("click", event => { if (event.target === dialog) close(); });
  function detail(row, column) {
    state.at = row.at;
    for (const tr of document.querySelectorAll("#matrix tr.test")) tr.classList.toggle("at", Number(tr.dataset.at) === row.at);
    const { test } = row;
    const tabs = el("div", { class: "tabs", role: "tablist" }, data.columns.map((other, at) => row.kinds[at] && el("button", {
      type: "button", role: "tab", "aria-selected": String(at === column), onclick: () => location.replace(hash(row.at, at)),
    }, other.label, " ", mark(row.kinds[at]))));
    dialog.replaceChildren(el("div", {},
      el("div", { class: "bar" }, el("h2", { class: "name", id: "detail-name" }, test.name),
        el("button", { type: "button", title: "Previous (k)", onclick: () => step(-1) }, "↑"),
        el("button", { type: "button", title: "Next (j)", onclick: () => step(1) }, "↓"),
        el("button", { type: "button", title: "Close (Esc)", onclick: close }, "✕")),
      el("p", {}, test.correct), el("p", { class: "faint" }, "Source: ", test.source), tabs,
      row.cells[column].map(cell => [
        cell.repetition && el("h2", {}, `Repetition ${cell.repetition}`),
        outcome(cell, data.columns[column]),
        (cell.earlier || []).map((earlier, at) => el("details", {}, el("summary", {}, `Attempt ${at + 1}, which was tried again: `, mark(earlier.verdict)), outcome(earlier, data.columns[column]))),
      ]),
      rerun(test, data.columns[column])));
    if (!dialog.open) dialog.showModal();
    dialog.focus();
    dialog.scrollTop = 0;
  }
  function outcome(cell, column) {
    const explained = {
      xfail: () => [el("p", {}, "Known: ", cell.reason), el("p", { class: "faint" }, cell.reference)],
      fixed: () => el("p", {}, "It passes, and the baseline says that it does not: ", cell.reason),
      skip: () => el("p", {}, cell.expected ? "" : "The baseline does not know this skip: ", cell.reason),
      not_run: () => el("p", {}, cell.reason),
      fail: () => cell.expected && el("p", {}, "Another failure was expected: ", cell.expected),
    }[cell.verdict];
    const facts = [
      cell.duration_ms !== undefined && ["took", seconds(cell.duration_ms)],
      cell.started_ms !== undefined && ["began", `${seconds(cell.started_ms)} after the start of the command`],
      cell.boot !== undefined && ["boot", String(cell.boot)],
    ].filter(Boolean);
    return [
      el("p", {}, mark(cell.verdict), el("span", { class: "faint" }, facts.map(([name, value]) => ` · ${name} ${value}`))),
      explained && explained(),
      cell.findings && el("ul", { class: "findings" }, cell.findings.map(found =>
        el("li", { class: cell.verdict === "xfail" ? "known" : undefined }, el("span", { class: "eye" }, found.eye), found.text))),
      cell.hang && evidenceParts(cell.hang).map(([name, lines]) => [el("h3", {}, `${name} when it timed out`), el("pre", { tabindex: "0" }, lines.join("\n"))]),
      cell.notes && [el("h3", {}, "Notes"), el("pre", {}, cell.notes.join("\n"))],
      cell.memory && picture(cell.memory, column.regions || [], (cell.findings || []).some(found => found.eye === "placement")),
      cell.dmesg && [el("h3", {}, `Kernel log, ${plural(cell.dmesg.length, "line")}`), el("pre", { tabindex: "0" }, cell.dmesg.map(line => data.lines[line]).join("\n"))],
    ];
  }
  function rerun(test, column) {
    const line = `pinbed run ${test.name} ${column.again}`;
    return [el("h3", {}, "Run it again"), el("div", { class: "rerun" }, el("pre", {}, line), navigator.clipboard && el("button", {
      type: "button", onclick: event => { const button = event.currentTarget; navigator.clipboard.writeText(line).then(() => { button.textContent = "Copied"; }); },
    }, "Copy"))];
  }

  // Guest memory.
  const MOMENTS = {
    before: "before the kernel takes it", held: "held by the device", process: "in the process, while the device holds others", dma: "after the device's DMA",
  };
  const runsOf = text => text ? text.split(",").map(run => { const [first, last = first] = run.split("-"); return [parseInt(first, 16), parseInt(last, 16)]; }) : [];
  const count = runs => runs.reduce((sum, [first, last]) => sum + last - first + 1, 0);
  function picture(memory, regions, misplaced) {
    const zones = regions.filter(region => region.kind !== "cma");
    const special = regions.filter(region => region.kind !== "zone");
    const within = frame => special.find(region => frame >= region.first && frame < region.first + region.pages);
    // A driver's own memory may be held in CMA; a finding says what may not.
    const isWrong = (moment, kind) => misplaced && (moment === "held" || moment === "dma") && kind !== "zone";
    const views = memory.sightings.map(seen => ({ ...seen, runs: runsOf(seen.frames) }));
    const buffers = new Map();
    for (const view of views) buffers.get(view.buffer)?.push(view) ?? buffers.set(view.buffer, [view]);
    const where = runs => {
      const places = {};
      for (const [first, last] of runs) for (let frame = first; frame <= last; frame++) {
        const region = within(frame);
        const name = region ? (region.kind === "cma" ? `in CMA region ${region.name}` : "in ZONE_MOVABLE") : "in ordinary memory";
        places[name] = (places[name] || 0) + 1;
      }
      return Object.entries(places).map(([name, pages]) => `${pages} ${name}`).join(", ") || "no page present";
    };
    const pages = view => {
      const shown = [];
      for (const [first, last] of view.runs) for (let frame = first; frame <= last && shown.length < 96; frame++) {
        const kind = within(frame)?.kind ?? "zone";
        const state = isWrong(view.moment, kind) ? "wrong" : ["held", "dma"].includes(view.moment) ? view.moment : "";
        shown.push(el("span", { class: `page ${kind} ${state}`, title: `page frame ${frame.toString(16)}, ${mib(frame)} MiB` }));
      }
      const left = count(view.runs) - shown.length;
      return [shown, left > 0 && el("span", { class: "faint" }, `and ${left} more`)];
    };
    const strips = [...buffers].map(([name, seen]) => [el("h3", {}, name), el("div", { class: "strip" }, seen.map(view => [
      el("span", {}, MOMENTS[view.moment]),
      el("div", {}, el("div", { class: "pages" }, pages(view)), el("span", { class: "faint mono" }, where(view.runs), view.frames && `: ${view.frames.length > 120 ? view.frames.slice(0, 120) + " …" : view.frames}`)),
    ]))]);
    const key = (kind, text) => el("span", {}, el("span", { class: `page key ${kind}` }), text);
    return [
      el("h3", {}, "Guest memory"),
      zones.length && views.length ? el("div", { class: "sideways", tabindex: "0" }, map(zones, regions.filter(region => region.kind === "cma"), views, frame => within(frame)?.kind ?? "zone", isWrong)) : undefined,
      views.length > 0 && el("p", { class: "legend" }, key("zone", "ordinary memory"), key("cma", "CMA"), key("movable", "ZONE_MOVABLE"), key("zone held", "pinned, held by the device"), key("zone dma", "read or written by DMA"), misplaced && key("cma wrong", "held where it must not be")),
      strips, memory.more && el("p", { class: "faint" }, "The test looked more often than is kept."),
      holdings(memory),
    ];
  }
  function map(zones, cma, views, kindOf, isWrong) {
    // Zones side by side, each as wide as its share; holes between them are left out.
    const WIDTH = 900, GAP = 10, LABEL = 250, ROW = 15, TOP = 34;
    const total = zones.reduce((sum, zone) => sum + zone.pages, 0);
    const scale = (WIDTH - LABEL - GAP * (zones.length - 1)) / total;
    let from = LABEL;
    const placed = [...zones].sort((a, b) => a.first - b.first).map(zone => { const x = from; from += zone.pages * scale + GAP; return { ...zone, x }; });
    const at = frame => { const zone = placed.find(zone => frame >= zone.first && frame < zone.first + zone.pages); return zone && zone.x + (frame - zone.first) * scale; };
    const height = TOP + views.length * ROW + 4;
    const drawn = svg("svg", { class: "map", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": "Where the buffers are in guest memory, a line for each moment" });
    for (const zone of placed) {
      drawn.append(
        svg("text", zone === placed.at(-1) ? { x: WIDTH, y: 12, "text-anchor": "end" } : { x: zone.x, y: 12 }, `${zone.name}, ${Math.round(zone.pages / 256)} MiB`),
        svg("rect", { class: zone.kind, x: zone.x, y: 18, width: zone.pages * scale, height: 10, rx: 2 }, svg("title", {}, `${zone.name}: from ${mib(zone.first)} MiB`)));
    }
    for (const region of cma) {
      const x = at(region.first);
      if (x !== undefined) drawn.append(svg("rect", { class: "cma", x, y: 18, width: Math.max(2, region.pages * scale), height: 10 }, svg("title", {}, `CMA region ${region.name}: ${Math.round(region.pages / 256)} MiB from ${mib(region.first)} MiB`)));
    }
    views.forEach((view, line) => {
      const y = TOP + line * ROW;
      const words = { before: "before", held: "held", process: "process", dma: "DMA" }[view.moment];
      drawn.append(svg("text", { x: 0, y: y + 11 }, `${view.buffer}, ${words}`), svg("line", { class: "rule", x1: LABEL, x2: WIDTH, y1: y + 14.5, y2: y + 14.5 }));
      for (const [first, last] of view.runs) {
        const x = at(first);
        if (x === undefined) continue;
        const kind = isWrong(view.moment, kindOf(first)) ? "wrong" : view.moment;
        drawn.append(svg("rect", { class: `mark ${kind}`, x, y: y + 2, width: Math.max(2, (last - first + 1) * scale), height: 11 }, svg("title", {}, `${plural(last - first + 1, "page")} at ${mib(first)} MiB`)));
      }
    });
    return drawn;
  }
  function holdings({ before, after }) {
    const held = of => count(runsOf(of.held));
    const lines = [
      ["pinned pages", before.pinned, after.pinned, true], ["free pages of CMA", before.cma_free, after.cma_free, false],
      ["pages of CMA that drivers have", before.cma_used, after.cma_used, true], ["pages that the device holds", held(before), held(after), true],
    ];
    return el("table", { class: "holdings" }, el("thead", {}, el("tr", {}, ["", "before the test", "after it"].map(text => el("th", { scope: "col" }, text)))),
      el("tbody", {}, lines.map(([name, was, is, balanced]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, String(was)),
        el("td", { class: balanced && was !== is ? "changed" : undefined }, String(is))))));
  }

  // Kernels and runs.
  const facts = pairs => el("dl", { class: "facts" }, pairs.filter(([, value]) => value !== undefined && value !== null && value !== "").map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  for (const column of data.columns) {
    const { counts, times, end } = column;
    $("kernels").append(el("div", { class: "card" }, el("h3", {}, column.label),
      facts([
        ["release", [column.release, column.version].filter(Boolean).join(" ")],
        ["result", `${counts.passed} passed (${counts.known} known failures), ${counts.failed} failed, ${counts.skipped} skipped, ${counts.not_run} not run; exit code ${column.exit}`],
        ["end", end.how === "done" ? "" : [end.how.replaceAll("_", " "), end.reason || end.line || end.status].filter(Boolean).join(": ")],
        ["machine", `QEMU ${column.qemu}, ${column.accel || "not booted"}, ${column.memory_mib} MiB, ${plural(column.cpus, "CPU")}`],
        ["memory", (column.regions || []).map(region => `${region.kind === "cma" ? "CMA region " : ""}${region.name} ${Math.round(region.pages / 256)} MiB`).join(", ")],
        ["baseline", column.baseline || "none: held to correctness"],
        ["fragments", column.fragments.join(" ")], ["command line", column.append], ["faults", column.faults.join(" ")], ["tree", column.tree_revision], ["fingerprint", column.fingerprint],
        ["first result", times.first_result && `${seconds(times.first_result)} after the start of the command; all were there after ${seconds(times.ended)}`],
      ]),
      column.boots.map(boot => {
        const { evidence } = boot;
        const bad = !["done", "stopped"].includes(boot.end.how);
        const title = `Boot ${boot.boot}: ${boot.end.how.replaceAll("_", " ")}${boot.culprit ? `, put down to ${boot.culprit}` : ""}${boot.known ? " (known)" : ""}`;
        const parts = evidenceParts(evidence);
        if (!bad && !parts.length) return el("p", { class: "faint" }, title);
        return el("details", { open: bad && !boot.known }, el("summary", {}, title), boot.headline && el("p", { class: "v fail" }, boot.headline),
          parts.map(([name, lines]) => [el("h3", {}, name), el("pre", { tabindex: "0" }, lines.join("\n"))]));
      })));
  }
  for (const run of data.runs) {
    $("runs").append(el("div", { class: "card" }, el("h3", {}, run.name), facts([
      ["command", el("code", {}, run.command)], ["began", run.started], ["exit code", run.exit === null ? "none: it did not end" : String(run.exit)], ["error", run.error],
      ["pinbed", [run.pinbed, run.revision].filter(Boolean).join(", ")],
    ])));
  }

  // Keys.
  const order = () => [...document.querySelectorAll("#matrix tr.test")].map(tr => Number(tr.dataset.at));
  function step(by) {
    const all = order();
    const next = all[Math.min(all.length - 1, Math.max(0, all.indexOf(state.at) + by))] ?? all[0];
    if (next === undefined) return;
    if (dialog.open) return location.replace(hash(next));
    state.at = next;
    for (const tr of document.querySelectorAll("#matrix tr.test")) tr.classList.toggle("at", Number(tr.dataset.at) === next);
    const link = document.querySelector("#matrix tr.at a");
    link?.focus();
    link?.scrollIntoView({ block: "center" });
  }
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const typing = event.target.matches("input[type=search], select");
    if (event.key === "Escape" && event.target === $("search")) return event.target.blur();
    if (typing) return;
    if (event.key === "/") { close(); $("search").focus(); event.preventDefault(); }
    if (event.key === "j") step(1);
    if (event.key === "k") step(-1);
  });
  addEventListener("hashchange", fromHash);
  show();
  fromHash();
  document.documentElement.dataset.ready = Math.round(performance.now());
})();
