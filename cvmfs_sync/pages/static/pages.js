// What pages do beyond plain HTML: copying, relative times that stay true, live progress, finding names. All of them work without it.
"use strict";

(() => {
  const said = document.getElementById("said");

  // --- copying ---
  const prepareCopying = (root) => {
    if (!navigator.clipboard) return; // only over HTTPS or from this machine; the text can be selected all the same
    for (const button of root.querySelectorAll("button[data-copy]")) button.hidden = false;
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest && event.target.closest("button[data-copy]");
    if (!button) return;
    const label = button.firstChild;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      label.data = "Copied";
      said.textContent = "Copied to the clipboard.";
    } catch {
      said.textContent = "The browser does not allow copying: select the text instead.";
    }
    setTimeout(() => { label.data = "Copy"; said.textContent = ""; }, 2500);
  });

  // --- times: as `texts.ago` tells them ---
  const steps = [["year", 31536000], ["month", 2592000], ["day", 86400], ["hour", 3600], ["minute", 60]];
  const ago = (when) => {
    const distance = (Date.now() - when) / 1000;
    for (const [unit, length] of steps) {
      const number = Math.floor(Math.abs(distance) / length);
      if (number < 1) continue;
      const words = `${number} ${unit}${number > 1 ? "s" : ""}`;
      return distance > 0 ? `${words} ago` : `in ${words}`;
    }
    return distance >= 0 ? "just now" : "in a moment";
  };
  const tellTimes = () => {
    for (const time of document.querySelectorAll("time[data-ago]")) {
      const words = ago(Date.parse(time.dateTime));
      if (time.textContent !== words) time.textContent = words;
    }
  };

  // --- live progress ---
  const size = (bytes) => {
    if (bytes < 1000) return `${bytes} B`;
    let value = bytes;
    for (const unit of ["kB", "MB", "GB", "TB"]) {
      value /= 1000;
      if (value < 999.5 || unit === "TB") return `${value >= 99.95 ? Math.round(value) : value.toFixed(1)} ${unit}`;
    }
  };
  const fresh = async () => { // the page again, and of it the parts that have changed
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of document.querySelectorAll("[data-fresh]")) {
      const other = page.getElementById(part.id);
      if (!other || other.innerHTML === part.dataset.as || part.contains(document.activeElement)) continue;
      part.dataset.as = other.innerHTML;
      part.replaceChildren(...other.childNodes);
      prepareCopying(part);
    }
    tellTimes();
  };
  const live = document.querySelector("[data-live]");
  if (live) {
    let shape = null, again = null;
    const told = document.getElementById("told");
    // What is not a number on its way is rendered by the server, once in two seconds at most.
    const refresh = () => { again = again || setTimeout(async () => { try { await fresh(); } catch { /* the next one may */ } again = null; }, shape === null ? 0 : 2000); };
    const tell = (event) => {
      const cycle = JSON.parse(event.data);
      const progress = cycle.progress;
      const field = (name) => live.querySelector(`[data-field="${name}"]`);
      if (progress && field("amount")) {
        field("what").textContent = progress.what;
        const [done, total] = [progress.done, progress.total].map(progress.unit === "bytes" ? size : (number) => number.toLocaleString("en"));
        field("amount").textContent = done + (progress.total ? ` of ${total}` : "") + (progress.unit === "bytes" ? "" : ` ${progress.unit}`);
        const bar = live.querySelector("progress");
        if (progress.total) { bar.max = progress.total; bar.value = Math.min(progress.done, progress.total); }
        else bar.removeAttribute("value");
      }
      const now = JSON.stringify([cycle.running, cycle.doing, cycle.results, cycle.last_ended, progress && progress.what]);
      if (now === shape) return;
      refresh();
      if (shape !== null && told && cycle.doing) told.textContent = cycle.doing;
      shape = now;
    };
    const reload = live.querySelector(".reload");
    let source = null, later = null;
    const listen = () => {
      source = new EventSource(live.dataset.live);
      source.addEventListener("cycle", tell);
      source.addEventListener("open", () => { if (reload) reload.hidden = true; });
      source.addEventListener("error", () => {
        if (reload) reload.hidden = false;
        // A stream that is cut is asked for again by the browser, one that is refused is not.
        if (source.readyState === EventSource.CLOSED) later = setTimeout(() => { refresh(); listen(); }, 30000);
      });
    };
    listen();
    addEventListener("pagehide", () => { clearTimeout(later); source.close(); });
    addEventListener("pageshow", (event) => { if (event.persisted) { refresh(); listen(); } });
  }

  // --- the names of all images on one page ---
  const finder = document.querySelector("[data-find]");
  if (finder) {
    const input = finder.querySelector("input");
    const entries = [...document.getElementById("names").children].map((entry) => [entry, entry.textContent.toLowerCase()]);
    const found = document.getElementById("found");
    const find = () => {
      const words = input.value.toLowerCase().split(/\s+/);
      let number = 0;
      for (const [entry, text] of entries) {
        entry.hidden = !words.every((word) => text.includes(word));
        number += entry.hidden ? 0 : 1;
      }
      found.textContent = `${number.toLocaleString("en")} image${number === 1 ? "" : "s"}${input.value ? " found" : ""}`;
    };
    input.addEventListener("input", find);
    finder.addEventListener("submit", (event) => event.preventDefault());
    finder.hidden = false;
    document.getElementById("by-hand").hidden = true;
    if (input.value) find(); // which the browser kept
  }

  prepareCopying(document);
  tellTimes();
  setInterval(tellTimes, 30000);
})();
