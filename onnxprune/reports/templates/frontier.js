"use strict";
(() => {
  // Names come from files, so text goes in by textContent alone.
  const { points, links } = JSON.parse(document.getElementById("points").textContent);
  const plot = document.getElementById("frontier-plot");
  const panel = document.getElementById("picked");
  const buttons = [...document.querySelectorAll("button.pick")];

  function make(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  const facts = (rows) => make("dl", { class: "facts" },
    ...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));

  function channels(rows) {
    const head = make("tr", {}, make("th", { scope: "col" }, "group"), make("th", { scope: "col", class: "n" }, "kept"),
      make("th", { scope: "col", class: "n" }, "of"));
    const body = rows.map(([name, kept, all]) => make("tr", {}, make("th", { scope: "row" }, name),
      make("td", { class: "n" }, String(kept)), make("td", { class: "n" }, String(all))));
    const table = make("table", { class: "dense" }, make("caption", {}, "Channels kept; other groups are not changed"),
      make("thead", {}, head), make("tbody", {}, ...body));
    return make("div", { class: "scroll", role: "region", "aria-label": "Plan, table", tabindex: "0" }, table);
  }

  function files(list) {
    return make("ul", { class: "files" }, ...list.map(({ path, size }) => {
      const name = links === null ? make("code", {}, path)
        : make("a", { href: links + path.split("/").map(encodeURIComponent).join("/"), download: "" }, path);
      return make("li", {}, name, ` (${size})`);
    }));
  }

  function pick(index) {
    const point = points[index];
    const title = make("h3", { id: "picked-title" }, point.title);
    const parts = [title, facts(point.facts)];
    if (point.certificate.length) parts.push(make("h4", {}, "Certificate"), facts(point.certificate));
    if (point.channels.length) parts.push(make("h4", {}, "Plan"), channels(point.channels));
    parts.push(make("h4", {}, "Files"), files(point.files));
    panel.replaceChildren(...parts);
    panel.hidden = false;
    buttons.forEach((b) => b.setAttribute("aria-pressed", String(Number(b.dataset.point) === index)));
    plot.dataset.picked = index;
    plot.dispatchEvent(new Event("redraw"));
  }

  function choose(cost) {
    plot.dataset.figure = `frontier-${cost.value}`;
    document.querySelectorAll("[data-cost-name]").forEach((n) => (n.textContent = cost.dataset.title));
    document.querySelectorAll("[data-pareto]").forEach((cell) => {
      cell.firstElementChild.hidden = !cell.dataset.pareto.split(" ").includes(cost.value);
    });
    plot.dispatchEvent(new Event("redraw"));
  }

  document.querySelectorAll("fieldset.costs input").forEach((c) => c.addEventListener("change", () => choose(c)));
  document.querySelector("fieldset.costs").hidden = document.querySelectorAll("fieldset.costs input").length < 2;
  document.getElementById("pick-hint").hidden = false;
  for (const button of buttons) {
    button.disabled = false;
    button.addEventListener("click", () => {
      pick(Number(button.dataset.point));
      panel.focus();
    });
  }
  plot.on("plotly_click", ({ points: hit }) => pick(hit[0].customdata));

  const done = document.getElementById("done");
  if (done !== null) {
    done.addEventListener("click", async () => {
      const ended = document.getElementById("ended");
      try {
        const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" };
        const answer = await fetch("done", options);
        ended.textContent = answer.ok ? "The command has ended. You can close this page." : "The command refused.";
        done.disabled = answer.ok;
      } catch {
        ended.textContent = "The command has ended.";
      }
    });
  }
})();
