"use strict";
// Everything of a run reaches the page as text, escaped or by textContent, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);

  // A metric: what is known of the contender that is pointed at, tapped or focused.
  for (const figure of document.querySelectorAll("figure.metric")) {
    const readout = figure.querySelector(".readout");
    const rows = [...figure.querySelectorAll(".row")];
    const show = (row) => {
      for (const each of rows) each.classList.toggle("on", each === row);
      readout.textContent = row.dataset.said;
    };
    for (const row of rows) {
      for (const event of ["mouseenter", "focus", "click"]) row.addEventListener(event, () => show(row));
    }
  }

  // Curves: the numbers at the step that is pointed at; arrows go from point to point.
  const number = (value) => (value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(2) : value.toPrecision(5));
  for (const figure of document.querySelectorAll("figure.curves")) {
    const { right, lines } = data.curves[Number(figure.dataset.at)];
    const { left, right: side, width } = data.frame;
    const svg = figure.querySelector("svg");
    const cursor = figure.querySelector(".cursor");
    const values = [...figure.querySelectorAll(".values dd")];
    const title = figure.querySelector(".readout");
    const steps = [...new Set(lines.flatMap((line) => line.map((point) => point[0])))].sort((a, b) => a - b);
    let current = steps.length - 1;

    const nearest = (points, step) =>
      points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best));
    const show = (at) => {
      current = Math.max(0, Math.min(steps.length - 1, at));
      const step = steps[current];
      const x = left + ((side - left) * step) / right;
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      title.textContent = "at step " + step.toLocaleString("en");
      let shown = 0;
      for (const points of lines) {
        if (!points.length) continue;
        const [, mean, least, most] = nearest(points, step);
        values[shown++].textContent =
          number(mean) + (least < most ? " (" + number(least) + " – " + number(most) + ")" : "");
      }
    };
    const point = (event) => {
      const box = svg.getBoundingClientRect();
      const step = ((((event.clientX - box.left) / box.width) * width - left) / (side - left)) * right;
      show(steps.reduce((best, each, at) => (Math.abs(each - step) < Math.abs(steps[best] - step) ? at : best), 0));
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: steps.length - 1 }[event.key];
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      show(to);
    });
    svg.tabIndex = 0;
    show(current);
  }
})();
