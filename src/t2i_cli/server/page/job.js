// One job as it shows on the page: its progress, its previews, its pictures, its errors.

import { Problem } from "./api.js";
import { complain, note, say } from "./notices.js";

const $ = (id) => document.getElementById(id);

/** Its methods in the second half are named and called as the server's events are. */
export class Job {
  constructor(count, gallery) {
    this.count = count;
    this.gallery = gallery;
    this.places = gallery.reserve(count);
    this.shares = this.places.map(() => 0);
    this.made = this.quarter = 0;
    this.problems = [];
    this.ended = false;
    $("run").hidden = false;
    $("progress").removeAttribute("value");
    this.#tell("Asking the server");
    say(count > 1 ? `Generating ${count} images.` : "Generating.");
  }

  hear({ name, data }) {
    return HEARD.includes(name) && this[name](data);
  }

  /** Say how it went; an answer that ends without `done` was cut off. */
  finish() {
    if (!this.ended) {
      throw new Problem({
        message: "The connection to the server broke.",
        hint: "See whether t2i serve is still running, then generate again.",
      });
    }
    if (this.problems.length) complain(...this.problems);
    else say(this.count > 1 ? `All ${this.count} images are ready.` : "The image is ready.");
  }

  /** Leave the page as it is between jobs. */
  clear() {
    this.gallery.release(...this.places);
    if ($("run").contains(document.activeElement)) $("prompt").focus();
    $("run").hidden = true;
    document.title = "t2i";
  }

  accepted({ waiting }) {
    this.#tell(waiting ? `Waiting, ${waiting} ahead` : "Starting");
  }

  downloading({ model, done, total }) {
    this.#tell(`Downloading ${model}, ${percent(done / total)}`);
  }

  loading({ model, device }) {
    this.#tell(`Loading ${model} on ${device}`);
  }

  sent() {
    this.#tell("Waiting for the model’s server");
  }

  note({ message }) {
    note(message);
  }

  measure({ name, reason }) {
    note(`${reason}: ${name}`);
  }

  step({ indices, step, steps }) {
    for (const index of indices) this.shares[index] = step / steps;
    const ready = this.count > 1 ? ` · ${this.made} of ${this.count} ready` : "";
    this.#tell(`Step ${step} of ${steps}${ready}`);
    this.#advance();
  }

  preview({ index, image }) {
    this.places[index].firstElementChild.src = image;
    this.places[index].classList.add("begun");
  }

  async image({ index, image, format, ...made }) {
    const bytes = Uint8Array.from(atob(image), (sign) => sign.charCodeAt(0));
    const blob = new Blob([bytes], { type: `image/${format}` });
    await this.gallery.settle(this.places[index], { ...made, format, blob });
    this.shares[index] = 1;
    this.made += 1;
    this.#advance();
    if (this.made < this.count) say(`${this.made} of ${this.count} images ready.`);
  }

  failure({ index, error }) {
    const which = this.count > 1 ? `Image ${index + 1}: ` : "";
    this.problems.push(new Problem({ ...error, message: which + error.message }));
    this.gallery.release(this.places[index]);
  }

  done() {
    this.ended = true;
  }

  #tell(state) {
    $("state").textContent = state;
  }

  #advance() {
    const share = this.shares.reduce((sum, one) => sum + one, 0) / this.count;
    const quarter = Math.floor(share * 4);
    $("progress").value = share;
    document.title = `${percent(share)} · t2i`;
    if (quarter > this.quarter && share < 1) say(percent(quarter / 4));
    this.quarter = quarter;
  }
}

const HEARD = [
  ...["accepted", "downloading", "loading", "sent", "note", "measure"],
  ...["step", "preview", "image", "failure", "done"],
];

function percent(share) {
  return `${Math.floor(share * 100)} %`;
}
