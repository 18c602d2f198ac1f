// The form, adapted to the model, and the job that it starts.

import { label } from "./advice.js";
import { call, events } from "./api.js";
import { Gallery } from "./gallery.js";
import { Job } from "./job.js";
import { announce, askKey, clearNotices, reveal, showNote, showProblems } from "./notices.js";

const PREVIEWS = 12;
const DRAFT = "t2i-draft";

const $ = (id) => document.getElementById(id);
const form = $("form");
const fields = form.elements;
const named = [...fields].filter((field) => field.name);
const settings = named.filter((field) => field.closest("details"));
const gallery = new Gallery(reuseSettings);

let connecting = null;
let model = null;
let running = null;

/** Load the model's description once, again after a failure, and adapt the form to it. */
function connect() {
  connecting ??= loadModel();
  return connecting;
}

async function loadModel() {
  clearNotices();
  // A server that is still downloading its model responds once that is done.
  $("model").textContent = "Loading the model…";
  announce("Loading the model.");
  try {
    model = await (await call("t2i/v1/model", {}, askKey)).json();
  } catch (error) {
    connecting = null;
    $("model").textContent = "";
    clearNotices();
    showProblems(error);
    return;
  }
  announce(`The model is ${model.name}.`);
  applyModel();
  restoreDraft();
}

function applyModel() {
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
    // The property of the model that the field needs: a flag, or a list of choices.
    const { needs } = field.dataset;
    const choices = needs ? [model[needs] || []].flat() : [true];
    if (!choices.length) refused.add(field.name);
    if (field.type === "select-one" && needs) {
      for (const name of choices) field.add(new Option(name));
    } else if (Array.isArray(model[needs])) {
      suggest(field, choices);
    }
    field.disabled = field.closest("label").hidden = refused.has(field.name);
  }
  $("settings").hidden = false;
  $("examples").replaceChildren(...model.examples.map(exampleButton));
}

/** Have the browser offer names for a field of text, as those of the LoRAs that there are. */
function suggest(field, names) {
  const list = document.createElement("datalist");
  list.id = `${field.name}-names`;
  list.append(...names.map((name) => new Option(name)));
  field.after(list);
  field.setAttribute("list", list.id);
}

/** A button that puts an example prompt into the form, and does not submit it. */
function exampleButton(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", () => {
    fields.prompt.focus();
    fields.prompt.select();
    // Unlike a new value, what is inserted can be undone (Ctrl+Z): a prompt may have stood there.
    if (!document.execCommand("insertText", false, text)) fields.prompt.value = text;
    onEdited();
    announce("The example is in the form.");
  });
  return button;
}

/** The body of a generate request; several images count up from a seed that is set. */
function readForm() {
  const filled = named.filter((field) => !field.disabled && field.value !== "");
  const values = Object.fromEntries(filled.map((field) => [field.name, read(field)]));
  const { count = 1, format, ...request } = values;
  const requests = Array.from({ length: count }, (_, n) =>
    "seed" in request ? { ...request, seed: request.seed + n } : request,
  );
  return { requests, format, previews: PREVIEWS };
}

function read(field) {
  return field.type === "number" ? field.valueAsNumber : field.value;
}

async function generate() {
  if (running) return announce("Still generating; Cancel ends it.");
  if (!model) {
    const loading = connect();
    clearNotices();
    showNote("It begins as soon as the model is loaded.");
    await loading;
    // Enter may have been pressed again meanwhile: start one job only.
    if (running || !model) return;
  }
  clearNotices();
  if (!form.reportValidity()) return;
  running = new AbortController();
  $("generate").ariaDisabled = "true";
  const body = readForm();
  const job = new Job(body.requests.length, gallery);
  let cancelled = false;
  try {
    const options = { method: "POST", body: JSON.stringify(body), signal: running.signal };
    const response = await call("t2i/v1/generate", options, askKey);
    for await (const event of events(response)) await job.hear(event);
    job.finish();
  } catch (error) {
    cancelled = error.name === "AbortError";
    if (cancelled) announce("Cancelled.");
    else showProblems(error);
  } finally {
    job.clear(cancelled);
    $("generate").ariaDisabled = "false";
    running = null;
  }
}

/** Put an image's settings into the form, but for those equal to the model's defaults. */
function reuseSettings({ request }) {
  for (const field of settings) field.value = "";
  for (const [name, value] of Object.entries(request)) {
    // The prompt of an image has what its styles add.
    if (fields[name] && "expanded" in fields[name].dataset) continue;
    if (fields[name] && value !== model?.[name]) fields[name].value = text(value ?? "");
  }
  $("settings").open = true;
  onEdited();
  fields.prompt.focus();
  announce("Its prompt, seed and settings are in the form.");
}

/** A value as a field has it: LoRAs as NAME:WEIGHT, one after the other. */
function text(value) {
  if (!Array.isArray(value)) return value;
  return value.map(({ source, weight }) => `${source}:${weight}`).join("; ");
}

/** Show the set fields beside the summary, and store the form for a reload. */
function onEdited() {
  const set = settings.filter((field) => !field.disabled && field.value);
  $("chosen").textContent = set
    .map((field) => `${label(field).toLowerCase()} ${field.value}`)
    .join(" · ");
  const values = named.map((field) => [field.name, field.value]);
  sessionStorage.setItem(DRAFT, JSON.stringify(Object.fromEntries(values)));
}

function restoreDraft() {
  const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "{}");
  for (const field of named) field.value ||= draft[field.name] ?? "";
  onEdited();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
form.addEventListener("input", onEdited);
form.addEventListener("invalid", (event) => reveal(event.target), { capture: true });
fields.prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  generate();
});
$("defaults").addEventListener("click", () => {
  for (const field of settings) field.value = "";
  onEdited();
});
$("cancel").addEventListener("click", () => running?.abort());

const stored = await gallery.open();
await connect();
if (!stored) showNote("This browser keeps no images: a reload loses them.");
