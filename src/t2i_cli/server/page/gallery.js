// The session's pictures as tiles, newest first, with places for those on their way.

import { Album } from "./album.js";
import { say } from "./notices.js";
import { Viewer } from "./viewer.js";

const ASKED = 5000;

const $ = (id) => document.getElementById(id);

export class Gallery {
  /** `again(picture)` takes a picture's settings into the form. */
  constructor(again) {
    this.tiles = new Map();
    this.album = new Album((picture) => {
      this.tiles.get(picture)?.remove();
      this.tiles.delete(picture);
      this.#tidy();
    });
    this.viewer = new Viewer(this.album, { again, focus: (picture) => this.#focus(picture) });
    $("clear").addEventListener("click", ({ detail }) => {
      // The second half of a double click is no answer.
      if (detail > 1) return;
      if (this.asked) this.#clear();
      else this.#ask(true);
    });
    $("clear").addEventListener("blur", () => this.#ask(false));
  }

  /** Show what a page before this one kept; whether the browser keeps pictures at all. */
  async open() {
    const kept = await this.album.open();
    $("gallery").append(...this.album.pictures.map((picture) => this.#tile(picture)));
    this.#tidy();
    return kept;
  }

  /** Places for so many pictures on their way. */
  reserve(count) {
    const made = Array.from({ length: count }, () => copy("pending"));
    $("gallery").prepend(...made);
    this.#tidy();
    return made;
  }

  /** Put a finished picture into its place, and keep it. */
  async settle(place, made) {
    const picture = await this.album.add(made);
    place.replaceWith(this.#tile(picture));
    this.#tidy();
  }

  /** Take back places that got no picture. */
  release(...places) {
    for (const place of places) place.remove();
    this.#tidy();
  }

  #tile(picture) {
    const item = copy("tile");
    const button = item.firstElementChild;
    const [image, caption, detail] = button.children;
    const { prompt, seed } = picture.request;
    image.src = picture.url;
    image.alt = `${prompt}, seed ${seed}`;
    caption.textContent = prompt;
    detail.textContent = `seed ${seed}`;
    button.addEventListener("click", () => this.viewer.open(picture));
    this.tiles.set(picture, item);
    return item;
  }

  /** Have the button ask whether all may go, for some seconds: nothing brings them back. */
  #ask(asked) {
    const count = this.album.pictures.length;
    const images = count === 1 ? "1 image" : `${count} images`;
    clearTimeout(this.asked);
    this.asked = asked && setTimeout(() => this.#ask(false), ASKED);
    $("clear").textContent = asked ? `Remove ${images}?` : "Remove all";
    $("clear").classList.toggle("grave", asked);
    if (asked) say(`Press again to remove ${images}.`);
  }

  #clear() {
    for (const picture of [...this.album.pictures]) this.album.remove(picture);
    $("prompt").focus();
    say("All images are removed.");
  }

  #focus(picture) {
    (this.tiles.get(picture)?.firstElementChild ?? $("prompt")).focus();
  }

  #tidy() {
    $("empty").hidden = $("gallery").childElementCount > 0;
    $("clear").hidden = this.album.pictures.length === 0;
    this.#ask(false);
  }
}

function copy(template) {
  return $(template).content.firstElementChild.cloneNode(true);
}
