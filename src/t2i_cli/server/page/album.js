// The pictures of this session, newest first, kept in IndexedDB so that a reload finds them.
// A session is a tab's: its name lies in sessionStorage. What closed tabs left goes after a day.

const MOST = 60;
const MOST_BYTES = 256 * 2 ** 20;
const DAY = 24 * 60 * 60 * 1000;
const SESSION = "t2i-session";

/** Where the browser gives no IndexedDB, the pictures last until the page is left. */
export class Album {
  /** `onDrop(picture)` is told of each one that goes. */
  constructor(onDrop) {
    this.pictures = [];
    this.onDrop = onDrop;
    this.session = sessionStorage.getItem(SESSION);
    if (!this.session) {
      this.session = [...crypto.getRandomValues(new Uint32Array(3))].join("-");
      sessionStorage.setItem(SESSION, this.session);
    }
  }

  /** Read what a page before this one kept; whether the browser keeps pictures at all. */
  async open() {
    try {
      this.store = await opened();
      const kept = await asked(this.#images("readonly").getAll());
      const old = Date.now() - DAY;
      for (const record of kept) {
        if (record.session === this.session) this.pictures.unshift(shown(record));
        else if (record.made < old) this.#images("readwrite").delete(record.id);
      }
      return true;
    } catch {
      return false;
    }
  }

  /** Keep a picture, and let go of the oldest where there are too many. */
  async add(picture) {
    const record = { ...picture, session: this.session, made: Date.now() };
    const added = shown(record);
    this.pictures.unshift(added);
    let bytes = 0;
    for (const [n, old] of [...this.pictures].entries()) {
      bytes += old.blob.size;
      if (n > 0 && (n >= MOST || bytes > MOST_BYTES)) this.remove(old);
    }
    // The quota may be spent: the picture is shown all the same.
    if (this.store) added.id = await asked(this.#images("readwrite").add(record)).catch(() => null);
    return added;
  }

  remove(picture) {
    this.pictures = this.pictures.filter((other) => other !== picture);
    if (picture.id) this.#images("readwrite").delete(picture.id);
    URL.revokeObjectURL(picture.url);
    this.onDrop(picture);
  }

  #images(mode) {
    return this.store.transaction("images", mode).objectStore("images");
  }
}

function shown(record) {
  return { ...record, url: URL.createObjectURL(record.blob) };
}

function opened() {
  const request = indexedDB.open("t2i", 1);
  request.onupgradeneeded = () =>
    request.result.createObjectStore("images", { keyPath: "id", autoIncrement: true });
  return asked(request);
}

function asked(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
