(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("scripted");

  // Theme: the system's until the reader chooses; a blocked storage must not break the page.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = document.querySelector(".theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  try { const kept = localStorage.getItem("hftk-theme"); if (kept) root.dataset.theme = kept; } catch { /* none kept */ }
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("hftk-theme", root.dataset.theme); } catch { /* for this view only */ }
    label();
  });
  system.addEventListener("change", label);
  label();

  // Copy buttons.
  for (const copy of document.querySelectorAll(".copy")) {
    copy.addEventListener("click", async () => {
      const code = copy.parentElement.querySelector("code");
      let done = true;
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        getSelection().selectAllChildren(code);
        done = document.execCommand("copy");
      }
      copy.textContent = done ? "Copied" : "Press Ctrl+C";
      setTimeout(() => { copy.textContent = "Copy"; }, 1600);
    });
  }

  // On paper everything is open.
  let opened = [];
  addEventListener("beforeprint", () => { opened = [...document.querySelectorAll("details:not([open])")]; opened.forEach((d) => { d.open = true; }); });
  addEventListener("afterprint", () => { opened.forEach((d) => { d.open = false; }); });

  // Charts: the values at the pointer, or at a step chosen with the arrow keys.
  const show = (value) => (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)
    ? value.toExponential(2) : String(Number(value.toPrecision(5))));
  const share = ([low, high, log], v) => (log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low));
  const make = (kind, parent) => { const e = document.createElement("span"); e.className = kind; e.hidden = true; parent.append(e); return e; };

  for (const figure of document.querySelectorAll(".chart")) {
    const plot = figure.querySelector(".plot");
    const data = JSON.parse(figure.querySelector("script").textContent);
    const steps = [...new Set(data.series.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b);
    const values = data.series.map((s) => new Map(s.points));
    const cross = make("cross", plot), tip = make("tip", plot);
    const marks = data.series.map((s) => make("mark " + s.kind, plot));
    let at = steps.length - 1;
    const name = figure.querySelector("h3").textContent;
    const settings = { tabindex: 0, role: "slider", "aria-label": name + ", by step", "aria-valuemin": steps[0], "aria-valuemax": steps[at] };
    for (const [key, value] of Object.entries(settings)) plot.setAttribute(key, value);

    const point = (index) => {
      at = Math.max(0, Math.min(steps.length - 1, index));
      const step = steps[at], x = 100 * share(data.x, step), lines = [];
      data.series.forEach((s, i) => {
        const value = values[i].get(step);
        marks[i].hidden = value === undefined;
        if (value === undefined) return;
        lines.push(s.name + " " + show(value));
        marks[i].style.left = x + "%";
        marks[i].style.top = 100 * (1 - share(data.y, value)) + "%";
      });
      const title = document.createElement("b");
      title.textContent = "step " + step.toLocaleString("en");
      tip.replaceChildren(title, ...lines.flatMap((l, i) => (i ? [document.createElement("br"), l] : [l])));
      cross.hidden = tip.hidden = false;
      cross.style.left = x + "%";
      tip.style.left = x > 55 ? "auto" : `calc(${x}% + 10px)`;
      tip.style.right = x > 55 ? `calc(${100 - x}% + 10px)` : "auto";
      plot.setAttribute("aria-valuenow", step);
      plot.setAttribute("aria-valuetext", `step ${step}: ${lines.join(", ")}`);
    };
    const leave = () => { for (const e of [cross, tip, ...marks]) e.hidden = true; };
    const nearest = (event) => {
      const box = plot.getBoundingClientRect();
      const wanted = data.x[0] + ((event.clientX - box.left) / box.width) * (data.x[1] - data.x[0]);
      let low = 0, high = steps.length - 1;
      while (high - low > 1) { const mid = (low + high) >> 1; if (steps[mid] < wanted) low = mid; else high = mid; }
      return wanted - steps[low] < steps[high] - wanted ? low : high;
    };
    plot.setAttribute("aria-valuenow", steps[at]);
    plot.addEventListener("pointermove", (event) => point(nearest(event)));
    plot.addEventListener("pointerdown", (event) => point(nearest(event)));
    plot.addEventListener("pointerleave", leave);
    plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) point(at); });
    plot.addEventListener("blur", leave);
    plot.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.round(steps.length / 10));
      const moves = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageDown: at - page, PageUp: at + page, Home: 0, End: steps.length - 1 };
      if (event.key === "Escape") leave();
      if (!(event.key in moves)) return;
      event.preventDefault();
      point(moves[event.key]);
    });
  }
})();
