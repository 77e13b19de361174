// Search and sort tables of the class "rows". Without scripts they are plain tables.
"use strict";
(() => {
  function number(text) {
    const found = text.replace(/,/g, "").match(/^[-+]?\d+(\.\d+)?(e[-+]?\d+)?/);
    return found ? Number(found[0]) : null;
  }

  function set(box) {
    const table = box.querySelector("table.rows");
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const search = box.querySelector("input[type=search]");
    const choice = box.querySelector("select");
    const count = box.querySelector("output");

    function filter() {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const kind = choice ? choice.value : "";
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !(words.every((w) => text.includes(w)) && (!kind || row.dataset.kind === kind));
        shown += !row.hidden;
      }
      count.textContent = `${shown} of ${rows.length}`;
    }

    function sort(column, head) {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keyed = rows.map((row) => [row.cells[column].textContent.trim(), row]);
      const numbers = keyed.map(([text]) => number(text));
      const numeric = numbers.some((n) => n !== null) && keyed.every(([text], i) => !text || numbers[i] !== null || /^[a-z]/.test(text));
      keyed.sort(([a], [b]) => {
        if (!numeric) return a.localeCompare(b, "en", { numeric: true }) * (up ? 1 : -1);
        const [x, y] = [number(a), number(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return (x - y) * (up ? 1 : -1);
      });
      body.append(...keyed.map(([, row]) => row));
    }

    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => sort(column, head));
    });
    search.addEventListener("input", filter);
    if (choice) choice.addEventListener("change", filter);
    filter();
  }

  document.querySelectorAll(".long-table").forEach(set);
})();
