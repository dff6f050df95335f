// The script of a page: sorts the tables, finds layers by their names, and shows the spectrum or
// the similarity of one layer. Texts go into the page as text, never as HTML.
(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const status = document.getElementById("status");
  const all = (selector, within) => Array.from((within || document).querySelectorAll(selector));

  // element makes an element with texts and elements inside.
  function element(name, properties, ...children) {
    const e = Object.assign(document.createElement(name), properties);
    e.append(...children);
    return e;
  }

  // --- sorting ---

  const collator = new Intl.Collator("en", { numeric: true });

  // sortBy sorts a table by the column of a head; another press reverses it. Numbers begin with
  // the largest. Cells without a value stay at the end.
  function sortBy(th) {
    const table = th.closest("table"), body = table.tBodies[0], at = th.cellIndex;
    const isNumber = th.classList.contains("n");
    const was = th.getAttribute("aria-sort") || (isNumber ? "ascending" : "descending");
    const now = was === "ascending" ? "descending" : "ascending";
    const sign = now === "ascending" ? 1 : -1;
    const rows = Array.from(body.rows, (row) => {
      const text = row.cells[at].textContent;
      return { row, text, value: isNumber ? parseFloat(text) : 0 };
    });
    const lacks = (x) => x.text === "" || Number.isNaN(x.value);
    rows.sort((x, y) => lacks(x) - lacks(y)
      || (lacks(x) ? 0 : sign * (isNumber ? x.value - y.value : collator.compare(x.text, y.text))));
    all("th[aria-sort]", table.tHead).forEach((other) => other.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", now);
    body.append(...rows.map((x) => x.row));
    status.textContent = "Sorted by " + th.textContent + ", " + now;
  }
  all("thead button").forEach((b) => b.addEventListener("click", () => sortBy(b.closest("th"))));

  // --- finding ---

  const find = document.getElementById("find");
  if (find) {
    find.closest("p").hidden = false; // without this script it finds nothing
    const rows = all(".layers tbody tr"), found = document.getElementById("found");
    find.addEventListener("input", () => {
      const wanted = find.value.trim().toLowerCase();
      let n = 0;
      for (const row of rows) {
        row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
        n += !row.hidden;
      }
      found.textContent = n + " of " + rows.length;
    });
  }

  // --- the detail of a layer ---

  const detail = document.getElementById("detail");
  if (!detail) return;
  const chart = document.getElementById("chart");
  const rowOf = new Map(all(".layers tbody tr").map((row) => [row.dataset.i, row]));
  let shown = null, opener = null, plot = null;

  const hasDetail = (i) => Boolean((data.sigma || data.phi)[i]);
  const short = (x) => Number(x.toPrecision(4)).toString();
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function show(i, from) {
    if (!hasDetail(i)) return;
    [shown, opener] = [i, from];
    all("[aria-current]").forEach((e) => e.removeAttribute("aria-current"));
    all('[data-i="' + i + '"]').forEach((e) => e.setAttribute("aria-current", "true"));
    const name = rowOf.get(i).cells[0].textContent;
    document.getElementById("detail-name").textContent = name;
    detail.hidden = false;
    document.documentElement.classList.add("open");
    draw();
    status.textContent = name + ": " + document.getElementById("detail-text").textContent;
  }

  function close() {
    detail.hidden = true;
    document.documentElement.classList.remove("open");
    all("[aria-current]").forEach((e) => e.removeAttribute("aria-current"));
    if (opener) opener.focus();
    [shown, opener] = [null, null];
  }

  function draw() {
    if (plot) plot.destroy();
    plot = null;
    chart.replaceChildren();
    document.getElementById("detail-text").textContent = data.sigma ? drawSpectrum(shown) : drawSimilarity(shown);
  }

  // drawSpectrum draws the singular values and their cumulative energy, with a table of both.
  function drawSpectrum(i) {
    const sigma = data.sigma[i], norm = data.norm[i], n = data.values[i];
    const index = sigma.map((_, k) => k + 1);
    let sum = 0;
    const energy = sigma.map((v) => {
      sum += norm > 0 ? (v / norm) ** 2 : 0;
      return Math.min(100 * sum, 100);
    });
    const last = sigma[sigma.length - 1], isLog = last > 0 && sigma[0] / last > 100;
    const box = element("div", { ariaHidden: "true" }); // the numbers are below
    chart.append(element("div", { role: "img", ariaLabel: "Chart of the singular values" }, box));
    const axis = { stroke: colour("--muted"), ticks: { show: false } };
    const decades = (_, ticks) => ticks.map((v) => isLog && !Number.isInteger(Math.log10(v)) ? null : v);
    const grid = { stroke: colour("--line"), width: 1, filter: decades };
    plot = new uPlot({
      width: chart.clientWidth, height: 190,
      cursor: { y: false, drag: { x: false, y: false } },
      scales: {
        x: { time: false, range: [0.5, sigma.length + 0.5] },
        y: isLog ? { distr: 3 } : { range: [0, (sigma[0] || 1) * 1.08] },
        e: { range: [0, 104] },
      },
      axes: [
        { ...axis, size: 30, grid: { show: false }, incrs: [1, 2, 4, 5, 8, 10, 20, 50, 100, 200, 500, 1000] },
        { ...axis, size: 60, grid, filter: decades, values: (_, ticks) => ticks.map((v) => v === null ? null : short(v)) },
        { ...axis, scale: "e", side: 1, size: 56, grid: { show: false }, values: (_, ticks) => ticks.map((v) => v + " %") },
      ],
      series: [
        { label: "i", value: (_, v) => v === null ? "" : v },
        { label: "σ", stroke: colour("--accent"), width: 2, points: { show: sigma.length < 65, size: 6, fill: colour("--accent") },
          value: (_, v) => v === null ? "" : short(v) },
        { label: "energy up to i", scale: "e", stroke: colour("--muted"), width: 1, dash: [4, 4], points: { show: false },
          value: (_, v) => v === null ? "" : v.toFixed(1) + " %" },
      ],
    }, [index, sigma, energy], box);
    chart.append(element("details", {}, element("summary", { textContent: "The numbers" }), element("table", { className: "heat", ariaLabel: "Singular values" },
      element("thead", {}, element("tr", {}, ...["i", "σ", "energy up to i"].map((h) => element("th", { scope: "col", textContent: h })))),
      element("tbody", {}, ...sigma.map((v, k) => element("tr", {}, element("th", { scope: "row", textContent: k + 1 }),
        element("td", { textContent: short(v) }), element("td", { textContent: energy[k].toFixed(2) + " %" })))))));
    return (n > sigma.length ? "the first " + sigma.length + " of " + n + " singular values" : n === 1 ? "1 singular value" : n + " singular values")
      + " σ" + (sigma.length ? ", from " + short(sigma[0]) + " to " + short(last) : "") + (isLog ? ", on a logarithmic scale" : "")
      + "; ‖Δ‖ " + short(norm);
  }

  // drawSimilarity shows φ(i, j) as a table: rows are the first i directions of A, columns the
  // first j of B.
  function drawSimilarity(i) {
    const phi = data.phi[i];
    const heads = (phi[0] || []).map((_, j) => element("th", { scope: "col", className: "n", textContent: j + 1 }));
    const rows = phi.map((row, k) => element("tr", {}, element("th", { scope: "row", textContent: k + 1 }),
      ...row.map((v) => element("td", { className: "h" + Math.max(0, Math.min(9, Math.round(9 * v))), textContent: v.toFixed(2) }))));
    const name = { ariaLabel: "Similarities φ(i, j)" };
    chart.append(element("div", { className: "wide", tabIndex: 0, role: "group", ...name }, element("table", { className: "heat", ...name },
      element("thead", {}, element("tr", {}, element("th", { scope: "col", textContent: "φ(i, j)" }), ...heads)),
      element("tbody", {}, ...rows))));
    const k = Math.min(phi.length, heads.length);
    return k ? "φ of the first i input directions of A, in rows, and the first j of B: 1 if one space contains the other, 0 if they are orthogonal."
      : "One of the updates is zero.";
  }

  all(".layers tbody th button").forEach((b) => {
    const i = b.closest("tr").dataset.i;
    b.addEventListener("click", () => show(i, b));
  });

  // A map is one stop of the tab key. Arrow keys move between its cells, and an open detail follows.
  // As a grid it gets these keys from a screen reader, too.
  all("main .heat").forEach((table) => {
    table.role = "grid";
    const cells = all("td[data-i]", table);
    cells.forEach((cell, k) => { cell.tabIndex = k ? -1 : 0; });
    const go = (cell) => {
      all('td[tabindex="0"]', table).forEach((other) => { other.tabIndex = -1; });
      cell.tabIndex = 0;
      cell.focus();
      if (shown !== null) show(cell.dataset.i, cell);
    };
    const next = (cell, down, right) => {
      let row = cell.parentElement, at = cell.cellIndex;
      for (;;) {
        at += right;
        if (down) row = down > 0 ? row.nextElementSibling : row.previousElementSibling;
        const to = row && row.cells[at];
        if (!to || to.cellIndex === 0) return cell;
        if (to.dataset.i) return to;
      }
    };
    const steps = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };
    table.addEventListener("click", (event) => {
      const cell = event.target.closest("td[data-i]");
      if (!cell) return;
      go(cell);
      show(cell.dataset.i, cell);
    });
    table.addEventListener("keydown", (event) => {
      const cell = event.target.closest("td[data-i]");
      if (!cell) return;
      if (steps[event.key]) go(next(cell, ...steps[event.key]));
      else if (event.key === "Enter" || event.key === " ") show(cell.dataset.i, cell);
      else return;
      event.preventDefault();
    });
  });

  document.getElementById("close").addEventListener("click", close);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && shown !== null) close(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (shown !== null) draw(); });
  addEventListener("resize", () => { if (plot) plot.setSize({ width: chart.clientWidth, height: 190 }); });
})();
