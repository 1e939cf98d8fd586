// Switches notifications of this browser on and off. Without this script, or in a browser without Web Push, the switch stays hidden.
const section = document.querySelector("#push");
const [on, off] = ["#push-on", "#push-off"].map((name) => document.querySelector(name));
const line = document.querySelector("#push-status");
const SCOPE = "/console/";

// The only script that this page starts as a worker, whatever it is asked for.
const rules = {createScriptURL: () => "/console/push.js"};
const policy = globalThis.trustedTypes?.createPolicy("kneo-worker", rules) ?? rules;

const BLOCKED = "Notifications of this site are blocked in the settings of this browser.";

async function present() {
  const registration = await navigator.serviceWorker.getRegistration(SCOPE);
  return registration?.pushManager.getSubscription();
}

async function show() {
  const isOn = "on" in section.dataset && Boolean(await present());
  on.hidden = isOn;
  off.hidden = !isOn;
  on.querySelector("button").disabled = Notification.permission === "denied";
  if (Notification.permission === "denied") line.textContent = BLOCKED;
  section.hidden = false;
}

async function subscribe() {
  if (await Notification.requestPermission() !== "granted") return Notification.permission === "denied" ? BLOCKED : "Notifications were not allowed.";
  await navigator.serviceWorker.register(policy.createScriptURL(""), {scope: SCOPE});
  const registration = await navigator.serviceWorker.ready;
  // A subscription of before may be another person's, or have another key of the service.
  await (await registration.pushManager.getSubscription())?.unsubscribe();
  const key = Uint8Array.from(atob(section.dataset.key.replaceAll("-", "+").replaceAll("_", "/")), (sign) => sign.charCodeAt(0));
  const {endpoint, keys} = (await registration.pushManager.subscribe({userVisibleOnly: true, applicationServerKey: key})).toJSON();
  for (const [name, value] of Object.entries({endpoint, p256dh: keys.p256dh, auth: keys.auth})) on.elements[name].value = value;
  on.submit();
}

async function unsubscribe() {
  await (await present())?.unsubscribe();
  off.submit();
}

for (const [form, act] of [[on, subscribe], [off, unsubscribe]]) {
  form?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    let problem;
    try { problem = await act(); } catch (error) { problem = `This browser did not do it: ${error.message}`; }
    if (!problem) return;
    line.textContent = problem;
    button.disabled = Notification.permission === "denied";
  });
}
if (section && "serviceWorker" in navigator && "PushManager" in globalThis && "Notification" in globalThis) show();
