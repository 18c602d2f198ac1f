// The session's images as tiles, newest first, with placeholders for those in progress.

import { Album } from "./album.js";
import { announce } from "./notices.js";
import { Viewer } from "./viewer.js";

const CONFIRM_MS = 5000;

const $ = (id) => document.getElementById(id);

export class Gallery {
  /** `reuse(picture)` puts an image's settings into the form. */
  constructor(reuse) {
    this.tiles = new Map();
    this.album = new Album((picture) => {
      this.tiles.get(picture)?.remove();
      this.tiles.delete(picture);
      this.#update();
    });
    this.viewer = new Viewer(this.album, { reuse, focus: (picture) => this.#focus(picture) });
    $("clear").addEventListener("click", ({ detail }) => {
      // The second click of a double click does not confirm.
      if (detail > 1) return;
      if (this.confirmTimer) this.#clear();
      else this.#setConfirming(true);
    });
    $("clear").addEventListener("blur", () => this.#setConfirming(false));
  }

  /** Show the stored images; resolves to whether the browser can store any. */
  async open() {
    const stored = await this.album.open();
    $("gallery").append(...this.album.pictures.map((picture) => this.#tile(picture)));
    this.#update();
    return stored;
  }

  /** Add `count` placeholders. */
  reserve(count) {
    const added = Array.from({ length: count }, () => cloneTemplate("pending"));
    $("gallery").prepend(...added);
    this.#update();
    return added;
  }

  /** Replace a placeholder by a finished image, and store it. */
  async settle(placeholder, image) {
    const picture = await this.album.add(image);
    placeholder.replaceWith(this.#tile(picture));
    this.#update();
  }

  /** Remove placeholders that got no image. */
  release(...placeholders) {
    for (const placeholder of placeholders) placeholder.remove();
    this.#update();
  }

  #tile(picture) {
    const item = cloneTemplate("tile");
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

  /** Have the button ask for confirmation, for CONFIRM_MS: the removal cannot be undone. */
  #setConfirming(confirming) {
    const count = this.album.pictures.length;
    const images = count === 1 ? "1 image" : `${count} images`;
    clearTimeout(this.confirmTimer);
    this.confirmTimer = confirming && setTimeout(() => this.#setConfirming(false), CONFIRM_MS);
    $("clear").textContent = confirming ? `Remove ${images}?` : "Remove all";
    $("clear").classList.toggle("grave", confirming);
    if (confirming) announce(`Press again to remove ${images}.`);
  }

  #clear() {
    for (const picture of [...this.album.pictures]) this.album.remove(picture);
    $("prompt").focus();
    announce("All images are removed.");
  }

  #focus(picture) {
    (this.tiles.get(picture)?.firstElementChild ?? $("prompt")).focus();
  }

  #update() {
    $("empty").hidden = $("gallery").childElementCount > 0;
    $("clear").hidden = this.album.pictures.length === 0;
    this.#setConfirming(false);
  }
}

function cloneTemplate(template) {
  return $(template).content.firstElementChild.cloneNode(true);
}
