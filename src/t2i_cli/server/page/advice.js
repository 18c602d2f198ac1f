// What to do about an error of the server, in words for someone in a browser.
// The server's own hints are for the command line: they name options and commands.

const TELL = "If it stays so, tell those who run this server: its log has the details.";
const MODEL = "Tell those who run this server: only they can change the model and its settings.";

/** By the error's `code`, as docs/exit-codes.md lists them. */
const BY_CODE = {
  bad_input: "Change the prompt or the settings.",
  not_allowed: "Tell those who run this server: only they can allow it.",
  quota: "Try again in a moment.",
  timed_out: "Fewer images, fewer steps or a smaller size take less time.",
  remote: `Try again in a moment. ${TELL}`,
  out_of_memory: "A smaller width and height need less memory.",
  model: MODEL,
  withheld: "Another seed or another wording may pass.",
  interrupted: "Generate asks for it again.",
  terminated: "Try again in a moment.",
};

/** The form's field that the server names: requests.0.steps, or steps alone. */
export function formField(name) {
  const last = name?.split(".").pop();
  const field = { requests: "count", size: "width" }[last] ?? last;
  return (field && document.getElementById("form").elements[field]) || null;
}

export function label(field) {
  return field.labels[0].firstChild.data.trim();
}

/** What the user can do about an error. */
export function advice({ code, field: name }) {
  const field = formField(name);
  if (name && !field) return MODEL;
  if (!field) return BY_CODE[code] ?? TELL;
  return field.required ? "Change the prompt." : `Change “${label(field)}”, or leave it empty.`;
}

/** The message, in which the form's label stands for the path of a field, as requests.0.steps. */
export function inWords({ message, field: name }) {
  const field = name?.includes(".") && formField(name);
  return field ? message.replaceAll(name, `“${label(field)}”`) : message;
}
