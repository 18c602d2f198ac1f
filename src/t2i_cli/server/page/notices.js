// What the page says: aloud to screen readers, as notes, as errors, and when it needs a key.

const $ = (id) => document.getElementById(id);

/** Have a screen reader say a sentence; what is seen says it otherwise. */
export function say(sentence) {
  $("live").textContent = sentence;
}

export function note(sentence) {
  $("notes").append(paragraph(sentence));
}

/** Show errors with their hints, and go to the field at fault. */
export function complain(...problems) {
  for (const { message, hint, field: name } of problems) {
    $("problem").append(paragraph(message), ...(hint ? [paragraph(hint, "hint")] : []));
    // A field of a job's request is told as requests.0.steps, or as steps alone.
    const field = name && $("form").elements[name.split(".").pop()];
    if (!field) continue;
    field.ariaInvalid = "true";
    reveal(field);
    field.focus();
  }
}

/** Take errors and notes away. */
export function hush() {
  $("problem").replaceChildren();
  $("notes").replaceChildren();
  for (const field of $("form").elements) field.ariaInvalid = null;
}

/** Unfold what hides a field. */
export function reveal(field) {
  const fold = field.closest("details");
  if (fold) fold.open = true;
}

/** Ask for the API key; resolves to null if the person has none. */
export function askKey(refused) {
  const dialog = $("access");
  $("access-title").textContent = refused ? "That key was refused" : "This server asks for a key";
  $("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const answer = () => resolve(dialog.returnValue === "use" ? $("key").value : null);
    dialog.addEventListener("close", answer, { once: true });
  });
}

function paragraph(text, kind = "") {
  const made = document.createElement("p");
  made.textContent = text;
  made.className = kind;
  return made;
}
