// The images of this session, newest first, stored in IndexedDB so that they survive a reload.
// A session is a browser tab: its id is in sessionStorage. Those of closed tabs expire in a day.

const MAX_PICTURES = 60;
const MAX_BYTES = 256 * 2 ** 20;
const MAX_AGE_MS = 24 * 60 * 60 * 1000;
const SESSION_KEY = "t2i-session";

/** Without IndexedDB the images last until the page is closed. */
export class Album {
  /** `onDrop(picture)` is called for each image that is removed for good. */
  constructor(onDrop) {
    this.pictures = [];
    this.onDrop = onDrop;
    this.session = sessionStorage.getItem(SESSION_KEY);
    if (!this.session) {
      this.session = [...crypto.getRandomValues(new Uint32Array(3))].join("-");
      sessionStorage.setItem(SESSION_KEY, this.session);
    }
  }

  /** Load the session's stored images; resolves to whether the browser can store any. */
  async open() {
    try {
      this.store = await openDatabase();
      const records = await toPromise(this.#images("readonly").getAll());
      const old = Date.now() - MAX_AGE_MS;
      for (const record of records) {
        if (record.session === this.session) this.pictures.unshift(withUrl(record));
        else if (record.made < old) this.#images("readwrite").delete(record.id);
      }
      return true;
    } catch {
      return false;
    }
  }

  /** Store an image; remove the oldest ones beyond the limits. */
  async add(picture) {
    // The order of images that are made in the same millisecond.
    const made = Math.max(Date.now(), (this.pictures[0]?.made ?? 0) + 1);
    const record = { ...picture, session: this.session, made };
    const added = withUrl(record);
    this.pictures.unshift(added);
    this.#removeOldest();
    // The storage quota may be exceeded: the image is shown all the same.
    if (this.store) {
      added.id = await toPromise(this.#images("readwrite").add(record)).catch(() => null);
    }
    return added;
  }

  /** Remove images, also from the store, until either `restore` or `drop`. */
  remove(pictures) {
    this.pictures = this.pictures.filter((other) => !pictures.includes(other));
    for (const { id } of pictures) if (id) this.#images("readwrite").delete(id);
  }

  drop(pictures) {
    for (const picture of pictures) {
      URL.revokeObjectURL(picture.url);
      this.onDrop(picture);
    }
  }

  /** Bring removed images back to their places, in the store as well. */
  restore(pictures) {
    this.pictures.push(...pictures);
    this.pictures.sort((one, other) => other.made - one.made);
    for (const { url: _, ...record } of pictures) {
      if (record.id) this.#images("readwrite").put(record);
    }
    this.#removeOldest();
  }

  /** Remove the oldest images beyond the limits. */
  #removeOldest() {
    let bytes = 0;
    const oldest = this.pictures.filter(({ blob }, n) => {
      bytes += blob.size;
      return n > 0 && (n >= MAX_PICTURES || bytes > MAX_BYTES);
    });
    this.remove(oldest);
    this.drop(oldest);
  }

  #images(mode) {
    return this.store.transaction("images", mode).objectStore("images");
  }
}

function withUrl(record) {
  return { ...record, url: URL.createObjectURL(record.blob) };
}

function openDatabase() {
  const request = indexedDB.open("t2i", 1);
  request.onupgradeneeded = () =>
    request.result.createObjectStore("images", { keyPath: "id", autoIncrement: true });
  return toPromise(request);
}

function toPromise(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
