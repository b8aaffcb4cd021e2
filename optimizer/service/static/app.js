// The pages' one script. Everything that comes from the service is set as text, or is a fragment that it has escaped.
"use strict";
(() => {
  const $ = (selector, within = document) => within.querySelector(selector);

  const element = (name, text, parent, kind) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    parent.append(made);
    return made;
  };

  // One call of the API; its problems are sentences that can be shown as they are.
  const call = async (method, url, body, type = "application/json") => {
    const options = { method, headers: { accept: "application/json" } };
    if (body !== undefined) {
      options.headers["content-type"] = type;
      options.body = body;
    }
    try {
      const response = await fetch(url, options);
      const text = await response.text();
      const said = text ? JSON.parse(text) : {};
      return { ok: response.ok, said, problems: response.ok ? [] : said.problems || [response.statusText] };
    } catch (error) {
      return { ok: false, said: {}, problems: [`the service did not answer (${error.message}).`] };
    }
  };

  const tell = (place, problems, good) => {
    if (!place) return;
    place.replaceChildren();
    place.classList.toggle("bad", problems.length > 0);
    place.textContent = problems.length ? problems.join(" ") : good;
  };

  const nearest = (from) => $(".said", from) || $("main > .said");

  const act = async (control, url, body) => {
    const busy = [...(control.matches("form") ? control.querySelectorAll("button") : [control])];
    busy.forEach((b) => { b.disabled = true; });
    const found = await call(control.dataset.method, url, body);
    busy.forEach((b) => { b.disabled = false; });
    if (found.ok && control.dataset.then) location.assign(control.dataset.then);
    else tell(nearest(control), found.problems, "done.");
    if (found.ok) refresh();
  };

  const submitted = (form) => {
    const values = {};
    const query = new URLSearchParams();
    for (const [name, value] of new FormData(form)) {
      const input = form.elements[name];
      if (input.dataset && "query" in input.dataset) query.set(name, value);
      else if (input.dataset && "number" in input.dataset) values[name] = Number(value);
      else if (value !== "") values[name] = name === "trial" ? Number(value) : value;
    }
    if (values.pick !== undefined) delete values.trial; // an expression goes before a mark in the table
    const body = form.dataset.method === "DELETE" ? undefined : JSON.stringify(values);
    act(form, form.dataset.url + (query.size ? `?${query}` : ""), body);
  };

  document.addEventListener("submit", (event) => {
    if (!event.target.dataset.url) return;
    event.preventDefault();
    submitted(event.target);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-url]");
    if (button) act(button, button.dataset.url);
  });

  // A study, live: what has changed is fetched as a fragment; what the reader has marked and where they are stays.
  const study = $("#study") && JSON.parse($("#study").textContent);
  const base = study && `/studies/${study.name}`;
  let waiting = false;
  let again = false;

  const shownFor = (state) => {
    for (const part of document.querySelectorAll("[data-when]")) part.hidden = !part.dataset.when.split(" ").includes(state);
  };

  const drawn = async () => {
    const place = $("#figure");
    const revision = $("#live").dataset.revision;
    if (!revision || place.dataset.revision === revision) return;
    place.dataset.revision = revision;
    const response = await fetch(place.dataset.url);
    if (response.ok) {
      const open = [...place.querySelectorAll("details")].map((d) => d.open);
      place.innerHTML = await response.text();
      [...place.querySelectorAll("details")].forEach((d, i) => { d.open = open[i] || false; });
    }
  };

  const renew = async () => {
    const response = await fetch(`${base}/live`);
    if (!response.ok) return;
    const marked = $("input[name=trial]:checked");
    const focused = document.activeElement && document.activeElement.id;
    const log = $(".log");
    const atEnd = !log || log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    const top = log ? log.scrollTop : 0;
    const fragment = new DOMParser().parseFromString(await response.text(), "text/html");
    for (const id of ["live", "table", "below"]) document.getElementById(id).replaceWith(fragment.getElementById(id));
    if (marked && $(`#trial-${marked.value}`)) $(`#trial-${marked.value}`).checked = true;
    if (focused && document.getElementById(focused)) document.getElementById(focused).focus({ preventScroll: true });
    const fresh = $(".log");
    if (fresh) fresh.scrollTop = atEnd ? fresh.scrollHeight : top;
    shownFor($("#live").dataset.state);
    drawn();
  };

  async function refresh() {
    if (!study) return;
    if (waiting) { again = true; return; }
    waiting = true;
    await renew();
    setTimeout(() => { // at most once a second, however much happens
      waiting = false;
      if (again) { again = false; refresh(); }
    }, 1000);
  }

  // A mark of the figure is a pick too.
  const pick = (event) => {
    const mark = event.target.closest("#figure .mark");
    const radio = mark && $(`#trial-${mark.dataset.trial}`);
    if (radio) {
      radio.checked = true;
      radio.focus();
    }
  };

  if (study) {
    $("#figure").addEventListener("click", pick);
    shownFor($("#live").dataset.state);
    drawn();
    const log = $(".log");
    if (log) log.scrollTop = log.scrollHeight;
    const events = new EventSource(`/v1/studies/${study.name}/events`);
    for (const name of ["state", "measured", "failed"]) events.addEventListener(name, refresh);
  }

  // A study that shall be.
  const text = $("#text");
  if (text) {
    const found = $("#found");
    const launch = $("#launch");
    let checked = null;
    const type = () => (text.value.trimStart().startsWith("{") ? "application/json" : "application/yaml");
    const changed = () => { launch.disabled = checked === null || text.value !== checked; };

    const problems = (list, warnings) => {
      found.replaceChildren();
      for (const problem of list) element("p", problem, found, "bad");
      for (const warning of warnings || []) element("p", `Mind: ${warning}`, found, "caution");
    };

    const facts = (report) => {
      problems([], report.warnings);
      element("p", "It can be launched.", found, "good");
      const list = element("dl", undefined, found);
      for (const [name, value] of Object.entries(report.facts)) {
        element("dt", name, list);
        element("dd", value, list);
      }
    };

    const ask = async (button, url, doing) => {
      const sent = text.value;
      button.disabled = true;
      problems([], []);
      element("p", doing, found, "hint");
      const answer = await call("POST", url, sent, type());
      button.disabled = false;
      return [answer, sent];
    };

    text.addEventListener("input", changed);
    $("#file").addEventListener("change", async (event) => {
      const file = event.target.files[0];
      if (!file) return;
      $("#check").disabled = true; // there is nothing to check until it has been read
      text.value = await file.text();
      $("#check").disabled = false;
      changed();
    });
    $("#new").addEventListener("submit", async (event) => {
      event.preventDefault();
      const [answer, sent] = await ask($("#check"), "/v1/checks", "Checking: the models are opened and one merge is measured …");
      checked = answer.ok ? sent : null;
      if (answer.ok) facts(answer.said);
      else problems(answer.problems, answer.said.warnings);
      changed();
    });
    launch.addEventListener("click", async () => {
      const [answer] = await ask(launch, "/v1/studies", "Launching …");
      if (answer.ok) location.assign(`/studies/${answer.said.name}`);
      else problems(answer.problems, answer.said.warnings);
    });

    const quoted = (value) => JSON.stringify(value); // a JSON text is one of YAML too
    const lines = (value) => value.split("\n").map((l) => l.trim().split(/\s+/)).filter((l) => l[0]);
    $("#build").addEventListener("submit", (event) => {
      event.preventDefault();
      const v = Object.fromEntries(new FormData(event.target));
      const checkpoints = lines(v.checkpoints).map(([name, ...model]) => `  - {name: ${quoted(name)}, model: ${quoted(model.join(" "))}}`);
      const objectives = lines(v.objectives).map(([name, scorer, path, least]) => [
        `  - name: ${quoted(name)}`,
        ...(least ? [`    at_least: ${least}`] : []),
        `    suites: [{path: ${quoted(path || "")}, scorer: ${quoted(scorer || "")}}]`,
      ].join("\n"));
      text.value = [
        `study: ${quoted(v.study)}`,
        `base: ${quoted(v.base)}`,
        "checkpoints:", ...checkpoints,
        `search_space: {method: ${v.method}}`,
        "objectives:", ...objectives,
        `search: {trials: ${v.trials}}`,
      ].join("\n") + "\n";
      changed();
      text.focus();
    });
  }
})();
