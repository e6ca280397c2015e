"use strict";

const frame = document.getElementById("portal");
let portal = null; // the origin of the portal, once it is known

/** Ask our own back end for a session of whoever is logged in here. */
async function session() {
  const answer = await fetch("portal-session", { method: "POST" });
  if (!answer.ok) throw new Error("no portal session");
  return answer.json();
}

window.addEventListener("message", async (event) => {
  // Only the portal in our own frame is answered, and the token goes to its origin only: another page that got into the frame
  // gets nothing.
  if (event.source !== frame.contentWindow || event.origin !== portal) return;
  if (event.data?.type === "dispatcher:renew") {
    const { token } = await session();
    frame.contentWindow.postMessage({ type: "dispatcher:token", token }, portal);
  }
  if (event.data?.type === "dispatcher:height" && Number.isFinite(event.data.height)) {
    frame.height = Math.min(Math.max(event.data.height, 200), 20000);
  }
});

session().then(({ url }) => {
  portal = new URL(url).origin;
  frame.src = url;
});
