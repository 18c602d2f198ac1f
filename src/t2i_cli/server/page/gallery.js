// The session's images as tiles, newest first, with placeholders for those in progress.

import { Album } from "./album.js";
import { announce } from "./notices.js";
import { Viewer } from "./viewer.js";

const UNDO_MS = 10_000;

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
    this.removed = [];
    this.viewer = new Viewer(this.album, {
      reuse,
      focus: (picture) => this.#focus(picture),
      remove: (picture) => this.#remove([picture]),
    });
    $("clear").addEventListener("click", () => this.#clear());
    $("undo").addEventListener("click", () => this.#undo());
    // Behind the dialog Undo cannot be reached: its time begins when the dialog closes.
    $("viewer").addEventListener("close", () => this.removed.length && this.#offerUndo());
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
    this.#removeCancelled();
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

  /** Keep the places of images that were cancelled, until the next job: nothing moves. */
  markCancelled(placeholders) {
    for (const placeholder of placeholders) placeholder.classList.replace("pending", "cancelled");
  }

  #removeCancelled() {
    for (const place of $("gallery").querySelectorAll(".cancelled")) place.remove();
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

  #clear() {
    this.#removeCancelled();
    // An image that is being stored has no tile yet; it appears in a moment.
    this.#remove(this.album.pictures.filter((picture) => this.tiles.has(picture)));
    $("undo").focus();
  }

  #remove(pictures) {
    this.removed.push(...pictures);
    for (const picture of pictures) this.tiles.get(picture).hidden = true;
    this.album.remove(pictures);
    this.#update();
    this.#offerUndo();
  }

  /** Offer for UNDO_MS to bring back what was removed. */
  #offerUndo() {
    const count = this.removed.length;
    const what = count === 1 ? "1 image is removed" : `${count} images are removed`;
    $("removed").textContent = `${count} removed`;
    $("undoing").hidden = false;
    announce(`${what}. Undo is possible for ${UNDO_MS / 1000} seconds.`);
    clearTimeout(this.undoTimer);
    if (!$("viewer").open) this.undoTimer = setTimeout(() => this.#endUndo($("prompt")), UNDO_MS);
  }

  #undo() {
    const restored = this.removed;
    this.removed = [];
    for (const picture of restored) this.tiles.get(picture).hidden = false;
    this.album.restore(restored);
    this.#update();
    this.#endUndo($("clear"));
    announce(restored.length === 1 ? "The image is back." : `${restored.length} images are back.`);
  }

  /** End the offer; if its button has the focus, `next` gets it. */
  #endUndo(next) {
    clearTimeout(this.undoTimer);
    this.album.drop(this.removed);
    this.removed = [];
    if (document.activeElement === $("undo")) next.focus({ preventScroll: true });
    $("undoing").hidden = true;
  }

  #focus(picture) {
    const tile = this.tiles.get(picture);
    (tile && !tile.hidden ? tile.firstElementChild : $("prompt")).focus();
  }

  #update() {
    $("empty").hidden = $("gallery").querySelector("li:not([hidden])") !== null;
    $("clear").hidden = this.album.pictures.length === 0;
  }
}

function cloneTemplate(template) {
  return $(template).content.firstElementChild.cloneNode(true);
}
