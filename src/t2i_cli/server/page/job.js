// One job on the page: its progress, previews, images and errors.

import { Problem, serverProblem } from "./api.js";
import { announce, showNote, showProblems } from "./notices.js";

const $ = (id) => document.getElementById(id);

/** The methods from `accepted` to `done` handle the server's events of the same names. */
export class Job {
  constructor(count, gallery) {
    this.count = count;
    this.gallery = gallery;
    this.placeholders = gallery.reserve(count);
    this.fractions = this.placeholders.map(() => 0);
    this.made = this.quarter = 0;
    this.problems = [];
    this.ended = false;
    $("run").classList.remove("idle");
    $("progress").removeAttribute("value");
    this.#setState("Asking the server");
    announce(count > 1 ? `Generating ${count} images.` : "Generating.");
  }

  hear({ name, data }) {
    return EVENT_NAMES.includes(name) && this[name](data);
  }

  /** Report the result. Throws a Problem if the response ended without the event `done`. */
  finish() {
    if (!this.ended) {
      throw new Problem("The connection to the server broke.", {
        hint: "The server may have been stopped. Generate asks for it again.",
      });
    }
    if (this.problems.length) showProblems(...this.problems);
    else announce(this.count > 1 ? `All ${this.count} images are ready.` : "The image is ready.");
  }

  /** Hide the progress; mark the placeholders that are left as cancelled, or remove them. */
  clear(cancelled) {
    if (cancelled) this.gallery.markCancelled(this.placeholders);
    else this.gallery.release(...this.placeholders);
    // A scroll would move other things under the pointer.
    const focused = $("run").contains(document.activeElement);
    if (focused) $("prompt").focus({ preventScroll: true });
    $("run").classList.add("idle");
    document.title = "t2i";
  }

  accepted({ waiting }) {
    this.#setState(waiting ? `Waiting, ${waiting} ahead` : "Starting");
  }

  downloading({ model, done, total }) {
    this.#setState(`Downloading ${model}, ${percent(done / total)}`);
  }

  loading({ model, device }) {
    this.#setState(`Loading ${model} on ${device}`);
  }

  sent() {
    this.#setState("Waiting for the model’s server");
  }

  note({ message }) {
    showNote(message);
  }

  measure({ name }) {
    showNote(`The server saves memory (${name}), which may take longer.`);
  }

  step({ indices, step, steps }) {
    for (const index of indices) this.fractions[index] = step / steps;
    const ready = this.count > 1 ? ` · ${this.made} of ${this.count} ready` : "";
    this.#setState(`Step ${step} of ${steps}${ready}`);
    this.#updateProgress();
  }

  preview({ index, image }) {
    this.placeholders[index].firstElementChild.src = image;
    this.placeholders[index].classList.add("begun");
  }

  async image({ index, image, format, ...made }) {
    const bytes = Uint8Array.from(atob(image), (sign) => sign.charCodeAt(0));
    const blob = new Blob([bytes], { type: `image/${format}` });
    await this.gallery.settle(this.placeholders[index], { ...made, format, blob });
    this.fractions[index] = 1;
    this.made += 1;
    this.#updateProgress();
    if (this.made < this.count) announce(`${this.made} of ${this.count} images ready.`);
  }

  failure({ index, error }) {
    const which = this.count > 1 ? `Image ${index + 1}: ` : "";
    this.problems.push(serverProblem({ ...error, message: which + error.message }));
    this.gallery.release(this.placeholders[index]);
  }

  done() {
    this.ended = true;
  }

  #setState(state) {
    $("state").textContent = state;
  }

  #updateProgress() {
    const fraction = this.fractions.reduce((sum, value) => sum + value, 0) / this.count;
    const quarter = Math.floor(fraction * 4);
    $("progress").value = fraction;
    document.title = `${percent(fraction)} · t2i`;
    if (quarter > this.quarter && fraction < 1) announce(percent(quarter / 4));
    this.quarter = quarter;
  }
}

const EVENT_NAMES = [
  ...["accepted", "downloading", "loading", "sent", "note", "measure"],
  ...["step", "preview", "image", "failure", "done"],
];

function percent(fraction) {
  return `${Math.floor(fraction * 100)} %`;
}
