"use strict";
(() => {
  document.documentElement.classList.add("scripted");
  for (const button of document.querySelectorAll("button.download")) {
    button.addEventListener("click", () => {
      const all = [...document.querySelectorAll("script.document")];
      const found = all.find((script) => script.dataset.name === button.dataset.name);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([found.textContent], { type: "application/json" }));
      link.download = button.dataset.name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }
  if (!window.vegaEmbed) return;
  const charts = JSON.parse(document.getElementById("charts").textContent);
  for (const [name, spec] of Object.entries(charts)) {
    const place = document.getElementById(name);
    const fresh = document.createElement("div");
    fresh.className = place.className;
    const spans = (layer) => layer.name === "spans" && layer.data.values.length;
    const room = place.clientWidth / 70;
    spec.layer = spec.layer.filter((layer) => !(spans(layer) > room));
    if (place.clientWidth < 560) spec.config.legend.columns = 3;
    spec.width = "container";
    spec.autosize = { type: "fit-x", contains: "padding" };
    // The finished picture stays until the new one is complete, and for good if that fails.
    fresh.style.cssText = "position:absolute;visibility:hidden;left:0;right:0";
    place.append(fresh);
    const options = { actions: false, renderer: "svg", tooltip: { theme: "custom" } };
    window.vegaEmbed(fresh, spec, options).then(
      () => {
        place.replaceChildren(fresh);
        fresh.style.cssText = "";
      },
      () => fresh.remove(),
    );
  }
})();
