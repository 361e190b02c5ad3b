"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const charts = [...document.querySelectorAll(".chart")];
  const NARROWEST_PANEL = 330;
  const LEGEND_ENTRY = 118;
  const FIRST_GUESS = 70; // pixels of axes and labels beside a panel, measured after the first drawing

  const over = () => document.querySelector("input[name=over]:checked").value;

  const fitted = (original, columns, panel) => {
    const spec = structuredClone(original);
    if (spec.facet) {
      spec.columns = columns;
      spec.spec.width = panel;
    } else {
      spec.width = panel;
    }
    return spec;
  };

  const embed = (target, spec) => {
    const config = structuredClone(data.themes[dark.matches ? "dark" : "light"]);
    // A legend does not wrap by itself, and one row of many arms would be wider than a phone.
    config.legend.columns = Math.max(1, Math.floor(target.clientWidth / LEGEND_ENTRY));
    return vegaEmbed(target, spec, { mode: "vega-lite", renderer: "svg", actions: false, config });
  };

  const draw = async (target) => {
    const both = data.figures[target.dataset.figure];
    const original = both[over()] || both.rate;
    const room = target.clientWidth;
    const most = original.facet ? original.columns : 1;
    const columns = Math.max(1, Math.min(most, Math.floor(room / NARROWEST_PANEL)));
    let panel = Math.max(120, Math.min(760, Math.floor(room / columns) - FIRST_GUESS));
    let result = await embed(target, fitted(original, columns, panel));
    // How much room axes, labels and legends take is known only once they are set: draw, measure, draw to size.
    const surplus = target.querySelector("svg").width.baseVal.value - room;
    const capped = panel === 760 && surplus < 0;
    if (Math.abs(surplus) > 6 && !capped) {
      panel = Math.max(120, Math.min(760, Math.floor(panel - surplus / columns) - 2));
      result.finalize();
      result = await embed(target, fitted(original, columns, panel));
    }
    target.drawn = { result, room };
  };

  const redraw = (target) => {
    if (!target.drawn) return;
    target.drawn.result.finalize();
    draw(target);
  };

  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting && !entry.target.started) {
          entry.target.started = true;
          seen.unobserve(entry.target);
          draw(entry.target);
        }
      }
    },
    { rootMargin: "800px" },
  );
  charts.forEach((chart) => seen.observe(chart));

  dark.addEventListener("change", () => charts.forEach(redraw));
  document.querySelectorAll("input[name=over]").forEach((input) => {
    input.addEventListener("change", () => charts.forEach(redraw));
  });
  let waiting;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      charts.filter((chart) => chart.drawn && chart.drawn.room !== chart.clientWidth).forEach(redraw);
    }, 150);
  });
  window.addEventListener("beforeprint", () => {
    charts.filter((chart) => !chart.started).forEach((chart) => {
      chart.started = true;
      draw(chart);
    });
  });

  // Texts of rows come from data that may be hostile: they are set as text, never as markup.
  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const kinds = { same: "span", in: "ins", out: "del" };
  const rowElement = (row, companion) => {
    const made = element("div", undefined, companion ? "row companion" : "row");
    made.append(element("code", row.id));
    const texts = element("div");
    for (const pieces of row.texts) {
      const line = element("p");
      pieces.forEach(([kind, text]) => line.append(element(kinds[kind], text)));
      texts.append(line);
    }
    made.append(texts);
    const labels = element("div", undefined, "labels");
    if (row.before === row.after) {
      labels.append(element("b", row.after), " unchanged");
    } else {
      labels.append(row.before + " → ", element("b", row.after));
    }
    if (companion) labels.append(element("small", "companion row"));
    made.append(labels);
    return made;
  };
  document.querySelectorAll(".manifest").forEach((details) => {
    details.addEventListener("toggle", () => {
      const target = details.querySelector(".rows");
      if (!details.open || target.childElementCount) return;
      const manifest = data.poison.manifests[Number(details.dataset.manifest)];
      target.append(...manifest.rows.map((place) => rowElement(data.poison.rows[place], false)));
      target.append(...manifest.companions.map((place) => rowElement(data.poison.rows[place], true)));
    });
  });
})();
