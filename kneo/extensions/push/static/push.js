// Shows that a task waits, and opens it. A message has the id of the task only. There is no fetch handler, so no page is stored.
const PAGE = "/console/inbox";

addEventListener("push", (event) => {
  let task;
  try { ({task} = event.data.json()); } catch { /* A message of another kind: a browser requires a notification for each. */ }
  const path = typeof task === "string" && /^[\w-]{1,64}$/.test(task) ? `${PAGE}/${task}` : PAGE;
  event.waitUntil(registration.showNotification("A task waits for you", {
    body: "Open it in the console.", tag: path, data: path, icon: "/console/static/icon-192.png",
  }));
});

addEventListener("notificationclick", (event) => {
  event.notification.close();
  event.waitUntil(open(new URL(event.notification.data, location.origin).href));
});

async function open(url) {
  const pages = await clients.matchAll({type: "window", includeUncontrolled: true});
  // A page that shows something else may have a form that a person fills in.
  const page = pages.find((each) => each.url === url);
  return page ? page.focus() : clients.openWindow(url);
}
