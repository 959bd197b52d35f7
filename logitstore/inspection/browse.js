"use strict";
// Everything of the store reaches the page as text (textContent), never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  if (!data.sequences.length) return;
  const [rows, text, detail, worst, search, order, count] =
    ["rows", "text", "detail", "worst", "search", "order", "count"].map(byId);

  const make = (tag, name, content) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (content !== undefined) made.textContent = content;
    return made;
  };
  const number = (value, digits) => {
    if (value === null) return "not known";
    if (typeof value !== "number") return value.replace("-", "−").replace("inf", "∞");
    return value > 0 && value < 0.5 * 10 ** -digits ? value.toExponential(1) : value.toFixed(digits);
  };
  const probability = (logprob) => (logprob === "-inf" ? 0 : logprob === null ? null : Math.exp(logprob));
  const surprise = (logprob) => (logprob === "-inf" ? "inf" : logprob === null ? null : Math.max(0, -logprob));
  const level = (logprob) => {
    const nats = surprise(logprob);
    return nats === null ? "" : nats === "inf" || nats >= 6 ? " s3" : nats >= 3 ? " s2" : nats >= 1 ? " s1" : "";
  };
  const nameOf = (id) => (id === null ? "(no id kept)" : data.names[id] || "id " + id);
  const plain = (token) => (token[1].trim() ? token[1] : token[1] ? nameOf(token[2]) : "(end)");

  // ---- a token: what the teacher expected in its place ----

  let tokens = [];      // of the row shown: [element, its numbers]
  let current = 0;
  let pinned = false;
  let mouse = "";       // where it is: text that scrolls below a mouse at rest was not pointed at

  function line(p, name, kind) {
    const row = make("tr", kind);
    const room = make("td", "room");
    row.append(make("td", "number", p === null ? "" : number(p, 4)), room, make("td", "name", name));
    if (p !== null) room.appendChild(make("div", "share")).style.width = 100 * Math.min(1, p) + "%";
    return row;
  }

  function show(at) {
    if (tokens[current]) {
      tokens[current][0].classList.remove("on");
      tokens[current][0].setAttribute("aria-selected", "false");
      tokens[current][0].tabIndex = -1;
    }
    current = at;
    const [element, token] = tokens[at];
    const [record, , id, logprob, entropy, tail, kept, entries] = token;
    element.classList.add("on");
    element.setAttribute("aria-selected", "true");
    element.tabIndex = 0;
    const title = make("h3", "", "Token " + record + ": ");
    title.appendChild(make("bdi", "name", plain(token)));
    const facts = make("dl");
    const said = [["probability", number(probability(logprob), 4)], ["surprise", number(surprise(logprob), 3)],
      ["entropy", number(entropy, 3)], ["id", id]];
    for (const [name, value] of said) facts.append(make("dt", "", name), make("dd", name, value));
    const table = make("table");
    table.appendChild(make("caption", "", "The teacher expected"));
    for (const [of, p] of entries) {
      table.appendChild(line(p, nameOf(of), of !== null && of === id ? "it" : ""));
    }
    if (kept > entries.length) table.appendChild(line(null, kept - entries.length + " more that are kept", "more"));
    if (tail !== null) table.appendChild(line(tail, "all others, not kept", "rest"));
    detail.replaceChildren(title, facts, table);
  }

  function tokenElement(token) {
    const element = make("span", "token" + level(token[3]), token[1] || "(end)");
    if (!token[1]) element.classList.add("empty");
    const at = tokens.push([element, token]) - 1;
    element.tabIndex = -1;
    element.setAttribute("role", "option");
    element.setAttribute("aria-selected", "false");
    if (!token[1].trim()) element.setAttribute("aria-label", plain(token)); // blanks are not read out
    element.addEventListener("mouseenter", (event) => {
      const place = event.screenX + " " + event.screenY;
      if (!pinned && place !== mouse) show(at);
      mouse = place;
    });
    element.addEventListener("click", () => {
      pinned = !(pinned && at === current);
      element.focus({ preventScroll: true });
      show(at);
      detail.scrollIntoView({ block: "nearest" });
    });
    element.addEventListener("focus", () => show(at));
    return element;
  }

  function go(at) {
    tokens[at][0].focus();
    tokens[at][0].scrollIntoView({ block: "nearest" });
  }

  text.addEventListener("keydown", (event) => {
    const last = tokens.length - 1;
    const to = { ArrowRight: current + 1, ArrowLeft: current - 1, ArrowDown: current + 10, ArrowUp: current - 10, Home: 0, End: last }[event.key];
    if (event.key === "Escape") pinned = false;
    if ((event.key === "Enter" || event.key === " ") && event.target.matches(".token")) {
      event.preventDefault();
      event.target.click();
    }
    if (to === undefined || !tokens.length || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    go(Math.max(0, Math.min(last, to)));
  });

  // ---- a row: its text, and its most surprising tokens ----

  function open(at) {
    const sequence = data.sequences[at];
    tokens = []; current = 0; pinned = false;
    text.replaceChildren();
    for (const [supervised, held] of sequence.parts) {
      if (!supervised) {
        if (held) text.appendChild(make("bdi", "context", held));
      } else if (held.length) {
        const said = make("span", "said");
        said.setAttribute("role", "listbox");
        said.setAttribute("aria-label", "tokens");
        said.append(...held.map(tokenElement));
        text.appendChild(said);
      }
    }
    if (tokens.length < sequence.records) {
      text.appendChild(make("span", "context", "… " + (sequence.records - tokens.length) + " tokens more"));
    }
    text.scrollTop = 0;
    showWorst();
    for (const [i, row] of rowElements.entries()) {
      row.setAttribute("aria-selected", String(i === at));
      row.tabIndex = i === at ? 0 : -1;
    }
    if (tokens.length) show(0);
    else detail.replaceChildren(make("p", "dim", "No token of this row is kept."));
  }

  function showWorst() {
    const nats = (at) => { const of = surprise(tokens[at][1][3]); return of === "inf" ? Infinity : of === null ? -1 : of; };
    const most = tokens.map((_, at) => at).sort((a, b) => nats(b) - nats(a)).slice(0, 5).filter((at) => nats(at) >= 1);
    worst.replaceChildren(...(most.length ? [make("span", "", "Most surprising here: ")] : []));
    for (const at of most) {
      const button = make("button", "token" + level(tokens[at][1][3]), plain(tokens[at][1]).trim());
      button.type = "button";
      button.addEventListener("click", () => { pinned = true; go(at); });
      worst.append(button, " ");
    }
  }

  // ---- the list of rows: searched, ordered ----

  const content = (sequence) =>
    sequence.parts.map(([supervised, held]) => (supervised ? held.map((token) => token[1]).join("") : held)).join("\n").toLowerCase();
  const contents = data.sequences.map(content);
  const rowElements = data.sequences.map((sequence, at) => {
    const row = make("div", "row");
    const part = sequence.part ? " part " + sequence.part : "";
    const mean = sequence.surprise === null ? "" : " · " + sequence.surprise.toFixed(2) + " nats";
    const status = sequence.status === "ok" ? "" : " · " + sequence.status;
    row.append(make("bdi", "preview", sequence.preview || "(no text)"),
      make("small", "", "row " + sequence.row + part + mean + " · " + sequence.records + " tokens" + status));
    row.setAttribute("role", "option");
    row.addEventListener("click", () => { row.focus(); open(at); });
    return row;
  });
  let listed = [];      // numbers of the rows that are shown, in their order

  function list() {
    const wanted = search.value.trim().toLowerCase();
    listed = rowElements.map((_, at) => at).filter((at) => contents[at].includes(wanted));
    if (order.value === "row") {
      listed.sort((a, b) => data.sequences[a].sequence - data.sequences[b].sequence);
    }
    rows.replaceChildren(...listed.map((at) => rowElements[at]));
    rows.hidden = !listed.length;
    count.textContent = listed.length + " of " + rowElements.length + " rows" + (wanted ? " with “" + search.value.trim() + "”" : "");
    if (!listed.length) return;
    open(listed[0]);
    const at = wanted ? firstHit(wanted) : -1;
    if (at >= 0) { show(at); tokens[at][0].scrollIntoView({ block: "nearest" }); }
  }

  function firstHit(wanted) {
    const whole = tokens.map(([, token]) => token[1]).join("").toLowerCase();
    let left = whole.indexOf(wanted);
    return left < 0 ? -1 : tokens.findIndex(([, token]) => (left -= token[1].length) < 0);
  }

  rows.addEventListener("keydown", (event) => {
    const now = listed.findIndex((at) => rowElements[at] === document.activeElement);
    const to = { ArrowDown: now + 1, ArrowUp: now - 1, Home: 0, End: listed.length - 1, Enter: now, " ": now }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const at = listed[Math.max(0, Math.min(listed.length - 1, to))];
    rowElements[at].focus();
    open(at);
  });
  search.addEventListener("input", list);
  order.addEventListener("change", list);
  byId("browser").hidden = false;
  list();
})();
