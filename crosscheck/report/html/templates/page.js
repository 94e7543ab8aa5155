"use strict";
// Opens what a link leads to, for browsers that do not by themselves; finds sites by their names.
(function () {
  function reveal() {
    var id = decodeURIComponent(location.hash.slice(1));
    var target = id && document.getElementById(id);
    if (!target) return;
    for (var e = target; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
    var box = target.closest("details.site");
    (box || target).scrollIntoView({ block: "start" });
    if (box) box.querySelector("summary").focus({ preventScroll: true });
  }
  addEventListener("hashchange", reveal);
  document.addEventListener("click", function (event) {
    var link = event.target.closest && event.target.closest("a[href]");
    var href = link && link.getAttribute("href");
    if (href && href === location.hash) reveal();
  });
  if (location.hash) reveal();

  var section = document.getElementById("sites");
  var rows = Array.prototype.slice.call(document.querySelectorAll("table.sites tbody tr"));
  if (!section || rows.length < 12) return;
  var label = document.createElement("label");
  label.className = "find";
  label.textContent = (section.getAttribute("data-find") || "find a site") + " ";
  var field = document.createElement("input");
  field.type = "search";
  label.appendChild(field);
  section.insertBefore(label, section.querySelector("details"));
  field.addEventListener("input", function () {
    var text = field.value.toLowerCase();
    rows.forEach(function (row) {
      row.hidden = text !== "" && row.cells[0].textContent.toLowerCase().indexOf(text) < 0;
    });
    if (text) section.querySelectorAll("details.group").forEach(function (group) {
      group.open = group.querySelector("tbody tr:not([hidden])") !== null;
    });
  });
})();
