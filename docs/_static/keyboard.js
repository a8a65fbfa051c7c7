// Furo leaves the headings of its sidebar without a level, and code that scrolls sideways out of the keyboard's reach.
document.addEventListener("DOMContentLoaded", () => {
  for (const heading of document.querySelectorAll("p.caption[role=heading]")) heading.setAttribute("aria-level", "2");
  for (const block of document.querySelectorAll("div.highlight pre, .table-wrapper")) block.tabIndex = 0;
});
