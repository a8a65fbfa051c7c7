// Headings sort their table; what is pointed at picks out its setting in tables and charts.
for (const button of document.querySelectorAll("table.sweep thead button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement, table = heading.closest("table"), column = heading.cellIndex;
    const before = heading.getAttribute("aria-sort"); // numbers fall first, names rise first
    const descending = before === "ascending" || (before === null && column > 0);
    table.querySelectorAll("th[aria-sort]").forEach(one => one.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = row => row.cells[column].dataset.order ?? row.cells[column].textContent.trim().replace(/,/g, "");
    const missing = text => text === "" || text === "–";
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return descending ? -order : order;
    });
    table.tBodies[0].append(...rows);
  });
}
const main = document.querySelector("main"), marked = document.querySelectorAll("[data-setting]");
function choose(event) {
  const chosen = event.type === "mouseleave" ? undefined : event.target.closest("[data-setting]")?.dataset.setting;
  main.classList.toggle("choosing", chosen !== undefined);
  marked.forEach(one => one.classList.toggle("chosen", one.dataset.setting === chosen));
}
for (const kind of ["mouseover", "focusin", "mouseleave"]) main.addEventListener(kind, choose);
