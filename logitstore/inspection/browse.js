"use strict";
// Everything of the store reaches the page as text (textContent), never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const text = document.getElementById("text");
  const detail = document.getElementById("detail");
  const choice = document.getElementById("sequence");
  const step = { "-1": document.getElementById("before"), 1: document.getElementById("after") };
  if (!data.sequences.length) return;

  const make = (tag, name, content) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (content !== undefined) made.textContent = content;
    return made;
  };
  const number = (value, digits) =>
    value === null ? "not known" : typeof value === "number" ? value.toFixed(digits) : value.replace("-", "−").replace("inf", "∞");
  const probability = (logprob) => (logprob === "-inf" ? 0 : logprob === null ? null : Math.exp(logprob));
  const surprise = (logprob) => (logprob === "-inf" ? "inf" : logprob === null ? null : Math.max(0, -logprob));
  const level = (logprob) => {
    const nats = surprise(logprob);
    return nats === null ? "" : nats === "inf" || nats >= 6 ? " s3" : nats >= 3 ? " s2" : nats >= 1 ? " s1" : "";
  };
  const nameOf = (id) => (id === null ? "(no id kept)" : data.names[id] || "id " + id);

  let tokens = [];      // of the sequence shown: [element, its numbers]
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
      tokens[current][0].tabIndex = -1;
    }
    current = at;
    const [element, [record, , id, logprob, entropy, tail, count, entries]] = tokens[at];
    element.classList.add("on");
    element.tabIndex = 0;
    const title = make("h3", "", "record " + record + ": ");
    const written = element.textContent;
    title.appendChild(make("bdi", "name", written.trim() ? written : nameOf(id)));
    const facts = make("dl");
    const said = [["id", id], ["p", number(probability(logprob), 4)], ["surprise", number(surprise(logprob), 3)],
      ["entropy", number(entropy, 3)], ["tail", number(tail, 4)], ["entries", count]];
    for (const [name, value] of said) facts.append(make("dt", "", name), make("dd", name, value));
    const table = make("table");
    for (const [of, p] of entries) {
      table.appendChild(line(p, nameOf(of), of !== null && of === id ? "it" : ""));
    }
    if (count > entries.length) table.appendChild(line(null, count - entries.length + " entries more", "more"));
    if (tail !== null) table.appendChild(line(tail, "(tail)", "rest"));
    detail.replaceChildren(title, facts, table);
  }

  function tokenElement(token) {
    const element = make("span", "token" + level(token[3]), token[1] || "(end)");
    if (!token[1]) element.classList.add("empty");
    const at = tokens.push([element, token]) - 1;
    element.tabIndex = -1;
    element.setAttribute("role", "option");
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

  function open(at) {
    const sequence = data.sequences[at];
    tokens = []; current = 0; pinned = false;
    text.replaceChildren();
    for (const [supervised, held] of sequence.parts) {
      if (!supervised) text.appendChild(make("bdi", "context", held));
      else text.appendChild(make("span", "said")).append(...held.map(tokenElement));
    }
    if (tokens.length < sequence.records) {
      text.appendChild(make("span", "context", "… " + (sequence.records - tokens.length) + " records more"));
    }
    text.scrollTop = 0;
    choice.value = at;
    step[-1].disabled = at === 0;
    step[1].disabled = at === data.sequences.length - 1;
    if (tokens.length) show(0);
  }

  text.addEventListener("keydown", (event) => {
    const last = tokens.length - 1;
    const to = { ArrowRight: current + 1, ArrowLeft: current - 1, ArrowDown: current + 10, ArrowUp: current - 10, Home: 0, End: last }[event.key];
    if (event.key === "Escape") pinned = false;
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    tokens[Math.max(0, Math.min(last, to))][0].focus();
  });
  data.sequences.forEach((sequence, at) => {
    const part = sequence.part ? ", part " + sequence.part : "";
    const option = make("option", "", "sequence " + sequence.sequence + " · row " + sequence.row + part + " · " + sequence.records + " records · " + sequence.status);
    option.value = at;
    choice.appendChild(option);
  });
  choice.addEventListener("change", () => open(Number(choice.value)));
  for (const by of [-1, 1]) step[by].addEventListener("click", () => open(Number(choice.value) + by));
  document.getElementById("browser").hidden = false;
  open(0);
})();
