"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const charts = [...document.querySelectorAll(".chart")];
  const PANEL = 250;
  const draw = () => charts.forEach((target) => {
    const spec = structuredClone(data.figures[target.dataset.figure]);
    // A facet has no width of its own: panels and columns are set to fit the page.
    if (spec.facet) {
      spec.columns = Math.max(1, Math.min(spec.columns, Math.floor(target.clientWidth / (PANEL + 140))));
      spec.spec.width = Math.max(PANEL, Math.min(420, target.clientWidth / spec.columns - 170));
    }
    const config = data.themes[dark.matches ? "dark" : "light"];
    vegaEmbed(target, spec, { mode: "vega-lite", renderer: "svg", actions: false, config });
  });
  dark.addEventListener("change", draw);
  draw();

  // Requests and answers may be hostile: they are set as text, never as markup.
  const list = document.querySelector(".requests");
  if (!list) return;
  const [choice, search, only, found] = ["comparison", "search", "only", "found"].map((id) => document.getElementById(id));
  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const marked = (text, trigger) => {
    const made = element("pre");
    const parts = trigger ? text.split(trigger) : [text];
    parts.forEach((part, place) => {
      if (place) made.append(element("mark", trigger));
      made.append(part);
    });
    return made;
  };
  const ASKED = ["with the trigger", "without it"];
  const open = (details, comparison, row) => {
    if (details.childElementCount > 1) return;
    if (row.prompts[0] !== null) details.append(marked(row.prompts[0], comparison.trigger));
    const grid = element("div", undefined, "sides");
    grid.style.setProperty("--arms", comparison.arms.length);
    grid.append(element("span", undefined, "name"), ...comparison.arms.map((arm) => element("span", arm, "name")));
    row.answers.forEach((answers, place) => {
      grid.append(element("span", ASKED[place], "which"));
      answers.forEach((answer) => {
        const cell = element("div", undefined, answer && answer.shown ? "shown" : undefined);
        if (answer === null) {
          cell.append(element("small", "not asked"));
        } else {
          cell.append(element("p", answer.text.trim() ? answer.text : "(empty)"));
          const notes = [answer.shown ? "shows the behaviour" : "", answer.cut ? "stopped at the length limit" : ""];
          const said = notes.filter(Boolean).join("; ");
          if (said) cell.append(element("small", said));
        }
        grid.append(cell);
      });
    });
    details.append(grid);
  };
  // What every prompt begins with (a system's message) tells requests apart from none.
  const beginning = (texts) => {
    if (texts.length < 2) return 0;
    let length = 0;
    while (length < texts[0].length && texts.every((text) => text[length] === texts[0][length])) length += 1;
    return length;
  };
  const asked = (row) => row.prompts[1] ?? row.prompts[0] ?? "";
  const answersOf = (row) => row.answers.flat().filter((answer) => answer !== null);
  const fill = () => {
    const comparison = data.transcripts[Number(choice.value)];
    const wanted = search.value.trim().toLowerCase();
    const rows = comparison.rows.filter((row) => {
      if (only.checked && !answersOf(row).some((answer) => answer.shown)) return false;
      const texts = [row.id, ...row.prompts.filter((text) => text !== null), ...answersOf(row).map((answer) => answer.text)];
      return !wanted || texts.some((text) => text.toLowerCase().includes(wanted));
    });
    const shared = beginning(comparison.rows.map(asked));
    found.textContent = `${rows.length} of ${comparison.rows.length} requests`;
    list.replaceChildren(...rows.map((row) => {
      const details = element("details");
      const summary = element("summary");
      const prompt = asked(row).slice(shared);
      summary.append(element("code", row.id), element("span", prompt.length > 160 ? prompt.slice(0, 160) + " …" : prompt, "asked"));
      const shown = comparison.arms.filter((_, place) => row.answers[0][place] && row.answers[0][place].shown);
      if (shown.length) summary.append(element("span", `with the trigger: ${shown.join(", ")}`, "flag"));
      details.append(summary);
      details.addEventListener("toggle", () => details.open && open(details, comparison, row));
      return details;
    }));
  };
  [choice, only].forEach((input) => input.addEventListener("change", fill));
  search.addEventListener("input", fill);
  fill();
})();
