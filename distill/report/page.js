"use strict";
// Everything of a run reaches the page as text, escaped or by textContent, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const make = (tag, content) => {
    const made = document.createElement(tag);
    made.textContent = content;
    return made;
  };

  // The leaderboard: a column's head sorts by it, its better end first; once more, the other end.
  const board = document.querySelector(".board");
  const heads = [...board.tHead.rows[0].cells];
  const valueOf = (row, column) => {
    const value = row.cells[column].dataset.value;
    return value === undefined ? null : Number(value);
  };
  const sort = (column, isAscending) => {
    const rows = [...board.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [valueOf(a, column), valueOf(b, column)];
      if (x === null || y === null) return (x === null) - (y === null); // not measured: last
      return isAscending ? x - y : y - x;
    });
    board.tBodies[0].append(...rows);
    heads.forEach((head, at) => {
      if (head.dataset.better) head.setAttribute("aria-sort", at !== column ? "none" : isAscending ? "ascending" : "descending");
    });
  };
  const choice = document.createElement("select");
  heads.forEach((head, column) => {
    if (!head.dataset.better) return;
    const first = head.dataset.better === "lower";
    const button = make("button", head.textContent);
    button.type = "button";
    const option = make("option", head.textContent);
    option.value = column;
    option.selected = head.getAttribute("aria-sort") !== "none";
    choice.append(option);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      sort(column, now === "none" ? first : now === "descending");
      choice.value = column;
    });
  });
  choice.addEventListener("change", () => {
    sort(Number(choice.value), heads[Number(choice.value)].dataset.better === "lower");
  });
  const label = make("label", "Sort by ");
  label.className = "sort";
  label.append(choice);
  board.parentElement.before(label);

  // Curves: the numbers at the step that is pointed at; arrows go from step to step.
  const number = (value) =>
    (value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(2) : value.toPrecision(5)).replaceAll("-", "−");
  const steps = (first, last) => {
    const [from, to] = [first, last].map((step) => step.toLocaleString("en"));
    return first === last ? "step " + to : "steps " + from + " to " + to;
  };
  for (const figure of document.querySelectorAll("figure.curves")) {
    const { right, lines } = data.curves[Number(figure.dataset.at)];
    const { left, right: side, width } = data.frame;
    const svg = figure.querySelector("svg");
    const cursor = figure.querySelector(".cursor");
    const values = [...figure.querySelectorAll(".values dd")];
    const title = figure.querySelector(".readout");
    // A group of neighbouring steps: where it stands, and what was logged in it by any student.
    const groups = new Map();
    for (const [group, first, last] of lines.flat()) {
      const [from, to] = groups.get(group) || [first, last];
      groups.set(group, [Math.min(from, first), Math.max(to, last)]);
    }
    const order = [...groups.keys()].sort((a, b) => a - b);
    let current = order.length - 1;

    const show = (at) => {
      current = Math.max(0, Math.min(order.length - 1, at));
      const [first, last] = groups.get(order[current]);
      const x = left + ((side - left) * last) / right;
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      title.textContent = "at " + steps(first, last) + (first === last ? "" : ", the mean");
      svg.setAttribute("aria-valuenow", last);
      let shown = 0;
      const said = [];
      for (const points of lines) {
        if (!points.length) continue;
        const point = points.find((each) => each[0] === order[current]);
        const cell = values[shown++];
        if (!point) {
          cell.textContent = "not logged";
        } else {
          const [, from, to, mean, least, most] = point;
          const own = from === first && to === last ? "" : " at " + steps(from, to);
          cell.textContent = number(mean) + (least < most ? " (" + number(least) + " – " + number(most) + ")" : "") + own;
        }
        said.push(cell.previousSibling.textContent + " " + cell.textContent);
      }
      svg.setAttribute("aria-valuetext", title.textContent + ": " + said.join(", "));
    };
    const point = (event) => {
      const box = svg.getBoundingClientRect();
      const step = ((((event.clientX - box.left) / box.width) * width - left) / (side - left)) * right;
      const distance = (at) => Math.abs(groups.get(order[at])[1] - step);
      show(order.reduce((best, _, at) => (distance(at) < distance(best) ? at : best), 0));
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: current - 1, ArrowRight: current + 1, ArrowDown: current - 1, ArrowUp: current + 1,
        Home: 0, End: order.length - 1 }[event.key];
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      show(to);
    });
    svg.setAttribute("role", "slider");
    svg.setAttribute("aria-valuemin", groups.get(order[0])[1]);
    svg.setAttribute("aria-valuemax", right);
    svg.tabIndex = 0;
    show(current);
  }
})();
