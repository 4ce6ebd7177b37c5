"use strict";
(async () => {
  const { figures, palette } = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const packed = document.getElementById("plotly");
  const shown = {};
  let printing = false;

  const paint = (value) => {
    if (typeof value === "string" && value[0] === "@") {
      return palette[value.slice(1)][dark.matches && !printing ? 1 : 0];
    }
    if (Array.isArray(value)) return value.map(paint);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, paint(item)]));
    }
    return value;
  };

  const draw = (place, name) => {
    shown[place] = name;
    const figure = paint(figures[name]);
    const element = document.getElementById(place);
    if (printing) figure.layout.width = 660;
    const tight = !printing && element.clientWidth < 520 ? 1.8 : 1;
    figure.data.forEach(({ marker }) => { if (marker && marker.sizeref) marker.sizeref *= tight; });
    return Plotly.react(element, figure.data, figure.layout, { displayModeBar: false });
  };
  const redraw = () => Object.entries(shown).forEach(([place, name]) => draw(place, name));

  document.querySelectorAll("[data-view]").forEach((button) => {
    button.addEventListener("click", () => {
      document.querySelectorAll("[data-view]").forEach((other) => {
        other.setAttribute("aria-pressed", String(other === button));
      });
      draw("frontier", button.dataset.view);
    });
  });
  document.querySelectorAll("[data-copy]").forEach((button) => {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        window.getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  });

  const closed = [];
  window.addEventListener("beforeprint", () => {
    printing = true;
    document.querySelectorAll("details:not([open])").forEach((part) => { closed.push(part); part.open = true; });
    redraw();
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    closed.splice(0).forEach((part) => { part.open = false; });
    redraw();
  });

  if (!packed) return;
  try {
    const bytes = Uint8Array.from(atob(packed.textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    const start = document.getElementById("frontier");
    if (start) await draw("frontier", start.dataset.first);
    if (document.getElementById("layers")) await draw("layers", "layers");
    dark.addEventListener("change", redraw);
    const follow = new ResizeObserver((changes) => {
      if (!printing) changes.forEach(({ target }) => window.Plotly.Plots.resize(target));
    });
    Object.keys(shown).forEach((place) => follow.observe(document.getElementById(place)));
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    document.querySelectorAll(".plot").forEach((place) => {
      place.textContent = "The chart needs a browser of 2023 or newer. Its figures are in the tables of this page.";
      place.classList.add("empty");
    });
  }
})();
