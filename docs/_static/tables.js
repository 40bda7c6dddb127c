// Cells know their column, so that lines of text become cards where there is little room.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".bd-article table")) {
    const labels = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
    const cells = [...table.querySelectorAll("tbody td")];
    if (labels.length > 1 && cells.some((cell) => cell.textContent.length > 60)) {
      table.classList.add("cards");
    }
    for (const cell of cells) {
      cell.dataset.label = labels[cell.cellIndex] || "";
      cell.classList.toggle("empty", !cell.textContent.trim());
    }
  }
});

// A search over the tables of the catalogue: by method, name in a paper, acronym, and what it needs.
// The words of a line are those of its cells; what papers call a function comes from names.json.
document.addEventListener("DOMContentLoaded", async () => {
  const heading = document.querySelector("#the-catalogue > h1");
  if (!heading) return;
  const root = document.documentElement.dataset.content_root;
  const names = await fetch(`${root}_static/names.json`).then((r) => r.json()).catch(() => ({}));
  const rows = [];
  for (const table of document.querySelectorAll("#the-catalogue table")) {
    table.classList.add("searched", "cards");
    const labels = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
    const kind = labels.indexOf("kind");
    for (const row of table.querySelectorAll("tbody tr")) {
      const cells = [...row.cells];
      const own = cells[0].textContent.trim();
      const words = `${row.textContent} ${names[own] || ""}`.toLowerCase();
      const needs = kind < 0 ? "" : `${cells[kind].textContent} ${cells[kind + 1].textContent}`;
      rows.push({ row, words, needs, kind: kind < 0 ? "" : cells[kind].textContent.trim() });
    }
  }
  const learns = (r) => r.needs.replace(/^\s*(logits|features|maps)/, "").replace("labels", "").trim();
  const choices = {
    "logits alone": (r) => r.kind === "logits" && !learns(r),
    "features": (r) => r.kind === "features",
    "maps": (r) => r.kind === "maps",
    "without labels": (r) => r.kind && !r.needs.includes("labels"),
    "nothing to learn": (r) => r.kind && !learns(r),
    "no teacher": (r) => r.words.includes("no teacher"),
  };
  const box = document.createElement("div");
  box.className = "find";
  box.setAttribute("role", "search");
  const input = document.createElement("input");
  input.type = "search";
  input.placeholder = "TTM, contrast, MiniLLM, BatchNorm, Hinton ...";
  input.setAttribute("aria-label", "Search the catalogue");
  const found = document.createElement("output");
  const chosen = new Set();
  const update = () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const entry of rows) {
      const fits = wanted.every((word) => entry.words.includes(word)) &&
        [...chosen].every((name) => choices[name](entry));
      entry.row.hidden = !fits;
      count += fits;
    }
    found.textContent = `${count} of ${rows.length}`;
  };
  box.append(input);
  for (const name of Object.keys(choices)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const on = !chosen.delete(name) && chosen.add(name);
      button.setAttribute("aria-pressed", String(Boolean(on)));
      update();
    });
    box.append(button);
  }
  box.append(found);
  heading.after(box);
  input.addEventListener("input", update);
  input.value = new URLSearchParams(location.search).get("find") || "";
  update();
});
