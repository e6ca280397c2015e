"use strict";

// The catalogue comes from whoever may write it: its texts are put in as text, never as markup.
function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function block(title, value) {
  return element("div", {}, element("h3", {}, title), element("pre", { tabindex: "0" }, JSON.stringify(value, null, 2)));
}

function shown(type) {
  const [first] = type.description.split("\n");
  const summary = element("summary", type.deprecated ? { class: "deprecated" } : {}, element("code", {}, type.name));
  if (type.deprecated) summary.append(element("span", { class: "badge" }, "deprecated"));
  if (first) summary.append(element("span", { class: "about" }, first));
  const body = element("div", { class: "body" });
  if (type.description !== first) body.append(element("p", {}, type.description));
  if (type.example !== null) body.append(block("Example of its data", type.example));
  if (type.schema !== null) body.append(block("Schema of its data", type.schema));
  if (!body.children.length) body.append(element("p", {}, type.description || "Nothing more is known of it."));
  return element("details", { class: "type", id: "type-" + type.name }, summary, body);
}

const asked = decodeURIComponent(location.hash.slice(1)); // Swagger UI keeps its own place there, later

async function catalogue() {
  const state = document.getElementById("catalogue-state");
  try {
    const response = await fetch("v1/event-types");
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.detail);
    document.getElementById("catalogue").replaceChildren(...answer.event_types.map(shown));
    state.textContent = answer.event_types.length ? "" : "None are documented yet.";
    const wanted = document.getElementById(asked);
    if (wanted instanceof HTMLDetailsElement) {
      wanted.open = true;
      wanted.scrollIntoView();
    }
  } catch (error) {
    state.textContent = "The catalogue can't be shown now: " + error.message;
  }
}

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  docExpansion: "list",
  displayRequestDuration: true,
  validatorUrl: null, // it would send the document to a server on the internet
});
catalogue();
