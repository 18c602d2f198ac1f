// Screen reader announcements, notes, errors, and the API key dialog.

import { formField } from "./advice.js";

const $ = (id) => document.getElementById(id);

/** Have screen readers announce a sentence; it is not visible. */
export function announce(sentence) {
  $("live").textContent = sentence;
}

export function showNote(sentence) {
  $("notes").append(paragraph(sentence));
}

/** Show errors with their hints, and focus the invalid field. */
export function showProblems(...problems) {
  for (const { message, hint, field: name } of problems) {
    $("problem").append(paragraph(message), ...(hint ? [paragraph(hint, "hint")] : []));
    const field = formField(name);
    if (!field) continue;
    field.ariaInvalid = "true";
    reveal(field);
    field.focus();
  }
}

/** Remove errors and notes. */
export function clearNotices() {
  $("problem").replaceChildren();
  $("notes").replaceChildren();
  for (const field of $("form").elements) field.ariaInvalid = null;
}

/** Open the <details> element that hides a field. */
export function reveal(field) {
  const details = field.closest("details");
  if (details) details.open = true;
}

/** Ask for the API key; resolves to null if the dialog is dismissed. */
export function askKey(refused) {
  const dialog = $("access");
  $("access-title").textContent = refused ? "That key was refused" : "This server asks for a key";
  $("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const onClose = () => resolve(dialog.returnValue === "use" ? $("key").value : null);
    dialog.addEventListener("close", onClose, { once: true });
  });
}

function paragraph(text, kind = "") {
  const element = document.createElement("p");
  element.textContent = text;
  element.className = kind;
  return element;
}
