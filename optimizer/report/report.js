// Marks of the front's figures can be pointed at, clicked, and walked with the keyboard. All texts are set as text.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("trials").textContent);
  const panel = document.getElementById("trial");
  const tip = document.getElementById("tip");
  const REACH = 24; // pixels around a mark that count as on it: a finger is no mouse

  const element = (name, text, parent) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };

  const told = (trial) => {
    const [what, , weights, , scores] = data.rows[trial];
    const lines = [`Trial ${trial}${what ? `, ${what}` : ""}`];
    for (const [name, believed, measured, , report] of scores) {
      if (believed || measured) lines.push(`${name}: ${believed || measured}${report ? `, on fresh items ${report}` : ""}`);
    }
    return [...lines, weights];
  };

  const show = (trial) => {
    const [what, method, weights, stopped, scores] = data.rows[trial];
    panel.replaceChildren();
    element("h3", `Trial ${trial}${what ? `, ${what}` : ""}`, panel);
    element("p", `${method}: ${weights}`, panel);
    if (stopped) element("p", `Stopped early: ${stopped}`, panel);
    const scroll = element("div", undefined, panel);
    scroll.className = "scroll";
    const table = element("table", undefined, scroll);
    const head = element("tr", undefined, element("thead", undefined, table));
    for (const name of ["", "posterior ± standard error", "search", "validation", "report"]) element("th", name, head).scope = "col";
    const body = element("tbody", undefined, table);
    for (const row of scores) {
      const line = element("tr", undefined, body);
      row.forEach((text, i) => element(i ? "td" : "th", text || "–", line));
    }
    const command = element("pre", `mergefront export ${data.study} --trial ${trial} --out ${data.study}-${trial}`, panel);
    command.className = "command";
    for (const mark of document.querySelectorAll(".mark")) mark.toggleAttribute("aria-current", mark.dataset.trial === String(trial));
  };

  const centre = (mark) => {
    const box = mark.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };

  const point = (mark) => {
    tip.replaceChildren(...told(mark.dataset.trial).map((line) => element("p", line)));
    tip.hidden = false;
    const [x, y] = centre(mark);
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(x + 14, room)) + window.scrollX}px`;
    tip.style.top = `${y + 16 + window.scrollY}px`;
  };

  const liven = (svg) => {
    const marks = [...svg.querySelectorAll(".mark")];
    if (!marks.length) return;
    svg.classList.add("lively");
    let near = null;
    const nearest = (event) => {
      let best = null;
      let distance = REACH;
      for (const mark of marks) {
        const [x, y] = centre(mark);
        const away = Math.hypot(x - event.clientX, y - event.clientY);
        if (away < distance) [best, distance] = [mark, away];
      }
      return best;
    };
    const approach = (mark) => {
      if (near) near.classList.remove("near");
      near = mark;
      if (!mark) { tip.hidden = true; return; }
      mark.classList.add("near");
      point(mark);
    };
    const open = (mark) => {
      show(mark.dataset.trial);
      svg.parentElement.after(panel); // below the drawing that was clicked, where it is seen
      history.replaceState(null, "", `#trial-${mark.dataset.trial}`);
    };
    svg.addEventListener("pointermove", (event) => approach(nearest(event)));
    svg.addEventListener("pointerleave", () => approach(null));
    svg.addEventListener("click", (event) => {
      const mark = nearest(event);
      if (mark) open(mark);
    });
    // One stop of the tabulator a figure; arrows walk from left to right, whatever was drawn first.
    const walk = [...marks].sort((a, b) => a.x.baseVal.value - b.x.baseVal.value);
    walk.forEach((mark, i) => {
      mark.setAttribute("tabindex", i ? "-1" : "0");
      mark.setAttribute("role", "button");
      mark.setAttribute("aria-label", told(mark.dataset.trial).join("; "));
      mark.addEventListener("focus", () => point(mark));
      mark.addEventListener("blur", () => { tip.hidden = true; });
      mark.addEventListener("keydown", (event) => {
        const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };
        const place = { Home: 0, End: walk.length - 1 }[event.key] ?? Math.max(0, Math.min(walk.length - 1, i + (steps[event.key] ?? NaN)));
        if (event.key === "Enter" || event.key === " ") open(mark);
        else if (event.key === "Escape") tip.hidden = true;
        else if (!Number.isNaN(place)) {
          mark.setAttribute("tabindex", "-1");
          walk[place].setAttribute("tabindex", "0");
          walk[place].focus();
        } else return;
        event.preventDefault();
      });
    });
  };

  document.querySelectorAll(".figure svg").forEach(liven);
  const asked = /^#trial-(\d+)$/.exec(location.hash);
  const first = asked && data.rows[asked[1]] ? asked[1] : data.open;
  if (panel && first !== null) show(first);
})();
