// The console works without this script. With it, times are in the reader's own zone, pages stay current and keys work.

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

// ---- forms -------------------------------------------------------------------------------------
const statusLine = document.querySelector("#live-status");
const fieldsOf = (form) => [...form.elements].filter((field) => field.name && field.type !== "hidden");
const defaultIndex = (select) => Math.max(0, [...select.options].findIndex((option) => option.defaultSelected));
const isTouched = (field) => field.matches("[type=radio], [type=checkbox]") ? field.checked !== field.defaultChecked
  : field.matches("select") ? field.selectedIndex !== defaultIndex(field)
  : field.matches("textarea, input") && field.value !== field.defaultValue;
const touchedIn = (root, forms) => [...root.querySelectorAll(forms)].find((form) => fieldsOf(form).some(isTouched));
const touchedForm = () => touchedIn(document, "form[data-keep]");

document.addEventListener("change", (event) => {
  const reason = event.target.name === "decision" && event.target.form.elements.reason;
  if (reason) reason.required = event.target.value === "rejected";
});
let isSending = false;
document.addEventListener("submit", (event) => { isSending = event.target.method === "post"; });
addEventListener("pageshow", (event) => { if (event.persisted) isSending = false; });
addEventListener("beforeunload", (event) => { if (!isSending && touchedForm()) event.preventDefault(); });
addEventListener("hashchange", openTarget);
function openTarget() {
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.querySelector("details")?.setAttribute("open", "");
}
openTarget();

// ---- live pages --------------------------------------------------------------------------------
// The server reports that something changed, never what. The page is asked for again, and its parts with data-live and an id
// that differ are exchanged. What a person has filled in is never exchanged, and no list under the pointer or with the focus.
const policy = globalThis.trustedTypes?.createPolicy("kneo", {createHTML: (html) => html}) ?? {createHTML: (html) => html};
const mark = document.body.dataset.liveMark;
let request = 0, listIsOld = false, timer, stream, release, poll, latest, lock;
let known = document.body.dataset.liveKnown;  // the mark when the server began to make this page

// A region of its own: what the status line announces about other parts of the page does not take its place.
function notice(text, link) {
  const line = document.querySelector("#notice");
  if (line.firstChild?.textContent === text) return;
  line.className = "notice";
  line.textContent = text;
  if (link) {
    const anchor = document.createElement("a");
    anchor.href = link;
    anchor.textContent = " Sign in";
    line.append(anchor);
  }
}

async function refresh() {
  if (isSending) return;  // what the page shows may have ended by the decision that is on its way
  const mine = ++request;
  let response;
  try { response = await fetch(location.href, {headers: {"x-kneo-live": "1"}}); } catch { return; }
  if (response.status === 401) {
    rest();
    notice("You are signed out; this page is no longer current.", `/console/login?next=${encodeURIComponent(location.pathname + location.search)}`);
    return;
  }
  if (response.status === 404) { rest(); notice("What this page shows is not there any more; this page is no longer current."); return; }
  if (!response.ok || mine !== request || isSending) return;
  const fresh = new DOMParser().parseFromString(policy.createHTML(await response.text()), "text/html");
  document.title = fresh.title;
  listIsOld = false;
  let changes = 0;
  const [shown, current] = [document, fresh].map((page) => page.querySelector("#decide"));
  const [form, formNow] = [shown, current].map((section) => section?.querySelector("form[data-keep]"));
  if (shown && current && !(form && formNow) && !shown.querySelector("#receipt")) {
    for (const section of [shown, current]) writeTimes(section);
    // The page of a refusal repeats what was typed, which no other page has.
    if (touchedIn(shown, "form") || shown.querySelector("[role=alert]")) {
      if (form) notice("This was decided meanwhile. What you typed is still here; nothing was sent.");
    } else if (!shown.isEqualNode(current)) {
      exchange(shown, current);
      changes++;
    }
  }
  for (const old of document.querySelectorAll("[data-live][id]")) {
    const now = fresh.getElementById(old.id);
    if (!now) continue;
    writeTimes(now);
    if (now.isEqualNode(old)) continue;
    if (old.matches("[data-list]:is(:hover, :focus-within)")) { listIsOld = true; continue; }
    exchange(old, now);
    changes++;
  }
  if (listIsOld) statusLine.textContent = "The list has changed; it is updated when you leave it.";
  else if (changes) statusLine.textContent = "Updated.";
}

function exchange(old, now) {
  for (const open of old.querySelectorAll("details[open][id]")) now.querySelector(`#${CSS.escape(open.id)}`)?.setAttribute("open", "");
  const focus = old.contains(document.activeElement) ? document.activeElement : null;
  const [left, top] = [old.scrollLeft, old.scrollTop];
  old.replaceWith(document.adoptNode(now));
  [now.scrollLeft, now.scrollTop] = [left, top];
  if (!focus) return;
  const href = focus.getAttribute("href");
  const same = focus.id ? document.getElementById(focus.id) : href && now.querySelector(`[href="${CSS.escape(href)}"]`);
  same?.focus({preventScroll: true});
}
for (const leaving of ["pointerout", "focusout"]) {
  document.addEventListener(leaving, (event) => {
    const list = listIsOld && event.target.closest("[data-list]");
    if (list && !list.contains(event.relatedTarget)) setTimeout(refresh);
  });
}

// One tab of all has the stream and tells the others: browsers have six connections for all tabs of a site together.
const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("kneo-live") : null;
function accept(marks) {
  if (marks[mark] !== known) { clearTimeout(timer); timer = setTimeout(refresh, 100); }
  known = marks[mark];
}
if (channel) channel.onmessage = ({data}) => { if (data !== "ask") accept(data); else if (latest) channel.postMessage(latest); };

function lead() {
  return new Promise((done) => {
    release = () => { stream?.close(); stream = latest = undefined; done(); };
    const open = () => {
      stream = new EventSource("/console/live");
      stream.addEventListener("marks", (event) => { latest = JSON.parse(event.data); accept(latest); channel?.postMessage(latest); });
      // A stream that the server refuses is asked for again much later; the page itself reports that the session has ended.
      stream.onerror = () => { if (stream?.readyState === EventSource.CLOSED) { refresh(); poll = setTimeout(open, 30000); } };
    };
    open();
  });
}
function follow() {
  if (!mark || document.hidden || lock || poll) return;
  if (navigator.locks) {
    lock = new AbortController();
    navigator.locks.request("kneo-live", {signal: lock.signal}, lead).catch(() => {});
    channel?.postMessage("ask");
  } else poll = setInterval(refresh, 15000);  // http:// from another machine: there are no locks
}
function rest() {
  clearInterval(poll);
  lock?.abort();
  release?.();
  lock = poll = release = undefined;
}
document.addEventListener("visibilitychange", () => { if (document.hidden) rest(); else { follow(); if (mark) refresh(); } });
addEventListener("pagehide", rest);
addEventListener("pageshow", (event) => { if (event.persisted) { follow(); if (mark) refresh(); } });
follow();

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
  const written = "textarea[name=content]";
  const field = {rejected: "textarea[name=reason]", edited: `:is(${written}, [name^="arguments."])`, provided: written}[decision];
  (field && document.querySelector(`#decide ${field}`) || choice).focus();
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
