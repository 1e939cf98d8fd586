// The console works without this script. With it, times are in the reader's own zone and keys work.

// ---- times -------------------------------------------------------------------------------------
const absolute = new Intl.DateTimeFormat(undefined, {dateStyle: "medium", timeStyle: "medium"});
const relative = new Intl.RelativeTimeFormat(undefined, {numeric: "auto", style: "short"});
const UNITS = [[60, "second", 1], [3600, "minute", 60], [86400, "hour", 3600], [Infinity, "day", 86400]];

function writeTimes(root = document) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    const seconds = (at - Date.now()) / 1000;
    const [, unit, size] = UNITS.find(([most]) => Math.abs(seconds) < most);
    const text = "absolute" in time.dataset ? absolute.format(at) : relative.format(Math.round(seconds / size), unit);
    if (time.textContent !== text) time.textContent = text;
    time.title = absolute.format(at);
  }
}
writeTimes();
setInterval(writeTimes, 15000);

// ---- keys --------------------------------------------------------------------------------------
const PLACES = {i: "inbox", e: "environments", r: "runs", a: "audit"};
const DECISIONS = {a: "approved", e: "edited", c: "selected", w: "provided", r: "rejected"};
let placeKeyAt = 0;

function focusRow(step) {
  const rows = [...document.querySelectorAll("[data-list] a[href]:first-of-type")];
  if (!rows.length) return;
  const current = rows.findIndex((row) => row === document.activeElement || row.getAttribute("aria-current"));
  const next = rows[current < 0 ? 0 : Math.min(Math.max(current + step, 0), rows.length - 1)];
  if (rows.some((row) => row.getAttribute("aria-current"))) next.click(); else next.focus();
}

function choose(decision) {
  const choice = document.querySelector(`#decide input[name=decision][value=${decision}]`);
  if (!choice) return;
  choice.click();
  const field = {rejected: "reason", edited: "content", provided: "content"}[decision];
  (field && document.querySelector(`#decide textarea[name=${field}]`) || choice).focus();
}

addEventListener("keydown", (event) => {
  const field = event.target.closest("input:not([type=radio], [type=checkbox]), textarea, select");
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter") { event.target.closest("form")?.requestSubmit(); return; }
  if (event.key === "Escape" && field) { field.blur(); return; }
  if (!("keys" in document.body.dataset) || field || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key;
  if (Date.now() - placeKeyAt < 1500 && PLACES[key]) {
    placeKeyAt = 0;
    document.querySelector(`.tabs a[href="/console/${PLACES[key]}"]`)?.click();
  } else if (key === "g") placeKeyAt = Date.now();
  else if (key === "/") document.querySelector("#q")?.focus();
  else if (key === "?") location.href = "/console/help";
  else if (key === "j" || key === "k") focusRow(key === "j" ? 1 : -1);
  else if (DECISIONS[key]) choose(DECISIONS[key]);
  else return;
  event.preventDefault();
});
