// The form, made from what the model takes, and the job that it starts.

import { call, events } from "./api.js";
import { Gallery } from "./gallery.js";
import { Job } from "./job.js";
import { askKey, complain, hush, note, reveal, say } from "./notices.js";

const PREVIEWS = 12;
const DRAFT = "t2i-draft";

const $ = (id) => document.getElementById(id);
const form = $("form");
const fields = form.elements;
const named = [...fields].filter((field) => field.name);
const settings = named.filter((field) => field.closest("details"));
const gallery = new Gallery(again);

let connecting = null;
let model = null;
let running = null;

/** Ask which model this is, and offer what it can honour; again only if that failed. */
function connect() {
  connecting ??= meet();
  return connecting;
}

async function meet() {
  hush();
  // A server that still fetches its model answers once it is there.
  $("model").textContent = "Loading the model…";
  say("Loading the model.");
  try {
    model = await (await call("t2i/v1/model", {}, askKey)).json();
  } catch (error) {
    connecting = null;
    $("model").textContent = "";
    hush();
    complain(error);
    return;
  }
  say(`The model is ${model.name}.`);
  offer();
  restore();
}

function offer() {
  $("model").textContent = model.name;
  for (const field of settings.filter((field) => "default" in field.dataset)) {
    field.placeholder = model[field.name] ?? "Model’s own";
  }
  fields.steps.max = model.limits.steps;
  fields.count.max = model.limits.images;
  for (const side of [fields.width, fields.height]) side.min = side.step = model.multiple;
  for (const [n, name] of model.formats.entries()) {
    fields.format.add(new Option(name.toUpperCase(), n ? name : ""));
  }
  const refused = new Set(model.refuses);
  for (const field of settings) {
    const { needs } = field.dataset; // what the model must have for it, or the values to choose from
    const found = needs ? [model[needs] || []].flat() : [true];
    if (!found.length) refused.add(field.name);
    if (field.type === "select-one" && needs) for (const name of found) field.add(new Option(name));
    field.disabled = field.closest("label").hidden = refused.has(field.name);
  }
  $("settings").hidden = false;
}

/** The requests that the form stands for; several count up from a seed that is set. */
function wishes() {
  const filled = named.filter((field) => !field.disabled && field.value !== "");
  const values = Object.fromEntries(filled.map((field) => [field.name, read(field)]));
  const { count = 1, format, ...wish } = values;
  const requests = Array.from({ length: count }, (_, n) =>
    "seed" in wish ? { ...wish, seed: wish.seed + n } : wish,
  );
  return { requests, format, previews: PREVIEWS };
}

function read(field) {
  return field.type === "number" ? field.valueAsNumber : field.value;
}

async function generate() {
  if (running) return say("Still generating; Cancel ends it.");
  if (!model) {
    const met = connect();
    hush();
    note("It begins as soon as the model is loaded.");
    await met;
    // Enter may have been pressed again meanwhile: one job is meant.
    if (running || !model) return;
  }
  hush();
  if (!form.reportValidity()) return;
  running = new AbortController();
  $("generate").ariaDisabled = "true";
  const wish = wishes();
  const job = new Job(wish.requests.length, gallery);
  try {
    const options = { method: "POST", body: JSON.stringify(wish), signal: running.signal };
    const response = await call("t2i/v1/generate", options, askKey);
    for await (const event of events(response)) await job.hear(event);
    job.finish();
  } catch (error) {
    if (error.name === "AbortError") say("Cancelled.");
    else complain(error);
  } finally {
    job.clear();
    $("generate").ariaDisabled = "false";
    running = null;
  }
}

/** Put a picture's own settings into the form, where they are not the model's anyway. */
function again({ request }) {
  for (const field of settings) field.value = "";
  for (const [name, value] of Object.entries(request)) {
    if (fields[name] && value !== model?.[name]) fields[name].value = value ?? "";
  }
  $("settings").open = true;
  edited();
  fields.prompt.focus();
  say("Its prompt, seed and settings are in the form.");
}

/** Say beside the fold what is set in it, and keep the form for a reload. */
function edited() {
  const set = settings.filter((field) => !field.disabled && field.value);
  $("chosen").textContent = set.map((field) => `${label(field)} ${field.value}`).join(" · ");
  const values = named.map((field) => [field.name, field.value]);
  sessionStorage.setItem(DRAFT, JSON.stringify(Object.fromEntries(values)));
}

function label(field) {
  return field.labels[0].firstChild.data.trim().toLowerCase();
}

function restore() {
  const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "{}");
  for (const field of named) field.value ||= draft[field.name] ?? "";
  edited();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
form.addEventListener("input", edited);
form.addEventListener("invalid", (event) => reveal(event.target), { capture: true });
fields.prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  generate();
});
$("defaults").addEventListener("click", () => {
  for (const field of settings) field.value = "";
  edited();
});
$("cancel").addEventListener("click", () => running?.abort());

const kept = await gallery.open();
await connect();
if (!kept) note("This browser keeps no images: a reload loses them.");
