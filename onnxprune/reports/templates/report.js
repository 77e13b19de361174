"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const config = { displayModeBar: false, responsive: true, doubleClick: "reset", showTips: false };
  const fine = matchMedia("(pointer: fine)").matches;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let printing = false;

  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const light = () => printing || !dark.matches;

  // Colours belong to the theme: everything that has one gets it here.
  function themed(figure, picked) {
    const ink = printing ? "#000" : variable("--ink");
    const soft = printing ? "#444" : variable("--soft");
    const rule = printing ? "#ddd" : variable("--rule");
    const card = printing ? "#fff" : variable("--card");
    const colour = (hue) => `hsl(${hue}, 62%, ${light() ? 42 : 68}%)`;
    const data = figure.data.map((trace) => {
      const own = colour(trace.meta.hue);
      const edge = trace.meta.hollow ? own : ink;
      let line = trace.meta.chosen ? { color: edge, width: 1.5 } : { width: 0 };
      if (trace.customdata) {
        const hit = trace.customdata.map((index) => String(index) === picked);
        line = { color: hit.map((h) => (h ? ink : own)), width: hit.map((h) => (h ? 3 : 1)) };
      }
      return {
        ...trace,
        line: { ...trace.line, color: own },
        marker: { ...trace.marker, color: own, line },
      };
    });
    const axis = (a) => ({
      ...a, gridcolor: rule, zeroline: false, linecolor: rule, tickcolor: rule, fixedrange: !fine, automargin: true,
      title: { ...a.title, font: { size: 12, color: soft }, standoff: 10 }, tickfont: { size: 11, color: soft },
    });
    const l = figure.layout;
    const layout = {
      showlegend: false, ...l,
      xaxis: axis(l.xaxis), yaxis: axis(l.yaxis),
      shapes: (l.shapes || []).map((s) => ({ ...s, line: { ...s.line, color: soft } })),
      annotations: (l.annotations || []).map((a) => ({ ...a, font: { size: 11, color: soft } })),
      font: { family: getComputedStyle(document.body).fontFamily, color: ink, size: 12 },
      paper_bgcolor: card, plot_bgcolor: card, margin: { l: 52, r: 18, t: 24, b: 48 }, dragmode: fine ? "zoom" : false,
      hoverlabel: { bgcolor: card, bordercolor: rule, font: { color: ink, size: 12 }, align: "left", namelength: -1 },
    };
    return { data, layout };
  }

  const hidden = {};
  function draw(plot) {
    const key = plot.dataset.figure;
    const { data, layout } = themed(figures[key], plot.dataset.picked);
    for (const trace of data) {
      trace.visible = !(hidden[key] && hidden[key].has(trace.meta.group));
    }
    return Plotly.react(plot, data, layout, config);
  }
  const plots = [...document.querySelectorAll("[data-figure]")];
  const all = () => plots.forEach(draw);
  all();
  plots.forEach((plot) => plot.addEventListener("redraw", () => draw(plot)));
  dark.addEventListener("change", all);

  // Checkboxes are the legend: they show, hide and point out lines, by mouse and by keyboard.
  for (const box of document.querySelectorAll("fieldset.lines")) {
    const key = box.dataset.for;
    const plot = document.querySelector(`[data-figure="${key}"]`);
    const ticks = [...box.querySelectorAll("input[data-group]")];
    hidden[key] = new Set();
    const read = () => {
      hidden[key] = new Set(ticks.filter((t) => !t.checked).map((t) => Number(t.dataset.group)));
      draw(plot);
    };
    const pointOut = (group) => {
      const lines = figures[key].data.map((t, i) => i).filter((i) => !figures[key].data[i].meta.chosen);
      const widths = lines.map((i) => (figures[key].data[i].meta.group === group ? 4 : figures[key].data[i].line.width));
      const opacity = lines.map((i) => (group === null || figures[key].data[i].meta.group === group ? 1 : 0.25));
      Plotly.restyle(plot, { "line.width": widths, opacity }, lines);
    };
    for (const tick of ticks) {
      const group = Number(tick.dataset.group);
      const item = tick.closest("li");
      tick.addEventListener("change", read);
      item.addEventListener("mouseenter", () => pointOut(group));
      item.addEventListener("mouseleave", () => pointOut(null));
      tick.addEventListener("focus", () => tick.matches(":focus-visible") && pointOut(group));
      tick.addEventListener("blur", () => pointOut(null));
    }
    for (const button of box.querySelectorAll("button[data-show]")) {
      button.addEventListener("click", () => {
        for (const tick of ticks) {
          if (!tick.closest("li").hidden) tick.checked = button.dataset.show === "all";
        }
        read();
      });
    }
    const find = box.querySelector("input[type=search]");
    if (find) {
      find.addEventListener("input", () => {
        const wanted = find.value.trim().toLowerCase();
        for (const tick of ticks) {
          const item = tick.closest("li");
          item.hidden = !item.textContent.toLowerCase().includes(wanted);
        }
      });
    }
  }

  addEventListener("beforeprint", () => { printing = true; all(); });
  addEventListener("afterprint", () => { printing = false; all(); });
  document.documentElement.dataset.ready = "yes";
})();
